package discover

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// errNotImplemented is an error as of a function that reports ERROR_NOT_SUPPORTED.
var errNotImplemented = fmt.Errorf("not implemented: %w", errors.ErrUnsupported)

// fakeHelper returns functions of Windows with the routes of a host with an Ethernet
// interface 12 and a wireless interface 13, both with a default route. GetBestRoute2 and
// GetIpInterfaceEntry fail with these errors, unless they are nil.
func fakeHelper(bestErr, metricErr error) ipHelper {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return ipHelper{
		bestRoute: func(netip.Addr, int) (route, error) {
			return route{dst: prefix("0.0.0.0/0"), via: addr("192.168.1.1"), src: addr("192.168.1.77"), index: 12, metric: 20}, bestErr
		},
		table: func(is6 bool) ([]route, error) {
			if is6 {
				return []route{
					{dst: prefix("::/0"), via: addr("fe80::1"), index: 12, metric: 256},
					{dst: prefix("fe80::/64"), index: 12, metric: 256},
					{dst: prefix("fe80::/64"), index: 13, metric: 200},
				}, nil
			}
			return []route{
				{dst: prefix("0.0.0.0/0"), via: addr("192.168.1.1"), index: 12, metric: 20},
				{dst: prefix("0.0.0.0/0"), via: addr("10.0.0.1"), index: 13, metric: 10},
				{dst: prefix("192.168.1.0/24"), index: 12, metric: 20},
				{dst: prefix("192.168.1.10/32"), index: 12, metric: 20, refusal: errThisHost.Error()},
				{dst: prefix("10.0.0.0/8"), index: 13, metric: 10},
				{dst: prefix("198.41.0.0/16"), via: addr("10.0.0.9"), index: 13, metric: 5000},
			}, nil
		},
		interfaceMetric: func(index int, is6 bool) (int64, error) {
			if metricErr != nil {
				return 0, metricErr
			}
			return map[int]int64{12: 5, 13: 50}[index], nil
		},
		interfaceAt: func(index int) (string, []netip.Prefix) {
			if index == 12 {
				return "Ethernet", []netip.Prefix{
					prefix("fe80::12/64"), prefix("2001:db8::12/64"), prefix("172.16.0.12/16"), prefix("192.168.1.10/24"),
				}
			}
			return "WiFi", []netip.Prefix{prefix("fe80::13/64"), prefix("10.0.0.13/8")}
		},
	}
}

// TestHelperLookup checks the lookup if functions are missing or not implemented.
func TestHelperLookup(t *testing.T) {
	for _, test := range []struct {
		name               string
		bestErr            error
		metricErr          error
		dst                string
		index              int
		addr, local, iface string
		metric             int
		noRoute            string // the error contains this text
	}{
		{name: "all functions", dst: "203.0.113.1", addr: "192.168.1.1", local: "192.168.1.77", iface: "Ethernet", metric: 25},
		{name: "no metric", metricErr: errMissing, dst: "203.0.113.1", addr: "192.168.1.1", local: "192.168.1.77", iface: "Ethernet", metric: 20},
		{name: "the interface no longer exists", metricErr: errors.New("not found"), dst: "203.0.113.1", addr: "192.168.1.1", local: "192.168.1.77", iface: "Ethernet", metric: 20},
		{name: "no lookup: lowest sum of metrics", bestErr: errMissing, dst: "203.0.113.1", addr: "192.168.1.1", local: "192.168.1.10", iface: "Ethernet", metric: 25},
		{name: "lookup not implemented", bestErr: errNotImplemented, dst: "203.0.113.1", addr: "192.168.1.1", local: "192.168.1.10", iface: "Ethernet", metric: 25},
		{name: "no lookup, no metric: lowest metric", bestErr: errMissing, metricErr: errMissing, dst: "203.0.113.1", addr: "10.0.0.1", local: "10.0.0.13", iface: "WiFi", metric: 10},
		{name: "no lookup: longest prefix", bestErr: errMissing, dst: "198.41.0.4", addr: "10.0.0.9", local: "10.0.0.13", iface: "WiFi", metric: 5050},
		{name: "no lookup: on the link", bestErr: errMissing, dst: "192.168.1.99", local: "192.168.1.10", iface: "Ethernet", metric: 25},
		{name: "no lookup: IPv6", bestErr: errMissing, dst: "2001:db8:1::1", addr: "fe80::1%Ethernet", local: "2001:db8::12", iface: "Ethernet", metric: 261},
		{name: "no lookup: link-local", bestErr: errMissing, dst: "fe80::99%12", index: 12, local: "fe80::12%Ethernet", iface: "Ethernet", metric: 261},
		{name: "no lookup: link-local of the other interface", bestErr: errMissing, dst: "fe80::99%13", index: 13, local: "fe80::13%WiFi", iface: "WiFi", metric: 250},
		{name: "no lookup: this host", bestErr: errMissing, dst: "192.168.1.10", noRoute: "it is this host"},
		{name: "no route", bestErr: noRoute(internet4, errors.New("the reason")), dst: "203.0.113.1", noRoute: "the reason"},
		{name: "no lookup: interface without a route", bestErr: errMissing, dst: "203.0.113.1", index: 99, noRoute: "the routing table has none"},
	} {
		g, err := fakeHelper(test.bestErr, test.metricErr).lookup(netip.MustParseAddr(test.dst), test.index)
		if test.noRoute != "" {
			if !errors.Is(err, ErrNoRoute) || !strings.Contains(err.Error(), test.noRoute) {
				t.Errorf("%s: got %+v, %v", test.name, g, err)
			}
			continue
		}
		index := map[string]int{"Ethernet": 12, "WiFi": 13}[test.iface]
		want := Gateway{Interface: test.iface, Index: index, Metric: test.metric}
		if test.addr != "" {
			want.Addr = netip.MustParseAddr(test.addr)
		}
		want.Local = netip.MustParseAddr(test.local)
		if err != nil || g != want {
			t.Errorf("%s: got %+v, %v, want %+v", test.name, g, err, want)
		}
	}
}

// TestHelperLookupFails checks errors that do not mean that there is no route.
func TestHelperLookupFails(t *testing.T) {
	broken := errors.New("broken")
	h := fakeHelper(broken, nil)
	if g, err := h.lookup(internet4, 0); !errors.Is(err, broken) || errors.Is(err, ErrNoRoute) {
		t.Errorf("the lookup fails: got %+v, %v", g, err)
	}
	h = fakeHelper(errMissing, nil)
	h.table = func(bool) ([]route, error) { return nil, errMissing }
	if g, err := h.lookup(internet4, 0); !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, ErrNoRoute) {
		t.Errorf("lookup and table are missing: got %+v, %v", g, err)
	}
	if list, err := h.defaultRoutes(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("the table is missing: got %+v, %v", list, err)
	}
	h.table = func(bool) ([]route, error) { return nil, nil }
	if g, err := h.lookup(internet4, 0); !errors.Is(err, ErrNoRoute) {
		t.Errorf("the table is empty: got %+v, %v", g, err)
	}
}

// TestHelperDefaultRoutes checks that a missing lookup changes only the local address,
// which is then a guess, and a missing metric only the metric.
func TestHelperDefaultRoutes(t *testing.T) {
	for name, test := range map[string]struct {
		bestErr, metricErr error
		local              string
		metrics            [3]int
	}{
		"all functions": {nil, nil, "192.168.1.77", [3]int{25, 60, 261}},
		"no lookup":     {errMissing, nil, "192.168.1.10", [3]int{25, 60, 261}},
		"neither":       {errMissing, errMissing, "192.168.1.10", [3]int{20, 10, 256}},
	} {
		got, err := fakeHelper(test.bestErr, test.metricErr).defaultRoutes()
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddr
		t.Log(name)
		equal(t, got, []defaultRoute{
			{Gateway: Gateway{Addr: addr("192.168.1.1"), Local: addr(test.local), Interface: "Ethernet", Index: 12, Metric: test.metrics[0]}},
			{Gateway: Gateway{Addr: addr("10.0.0.1"), Local: addr("10.0.0.13"), Interface: "WiFi", Index: 13, Metric: test.metrics[1]}},
			{Gateway: Gateway{Addr: addr("fe80::1%Ethernet"), Local: addr("2001:db8::12"), Interface: "Ethernet", Index: 12, Metric: test.metrics[2]}, is6: true},
		})
	}
}
