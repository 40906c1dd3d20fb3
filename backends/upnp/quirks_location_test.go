package upnp_test

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestLocationHostIgnored checks that the description is fetched from the gateway
// itself if LOCATION names another host, and that no other host is contacted.
func TestLocationHostIgnored(t *testing.T) {
	for name, host := range map[string]string{
		"this host":               "127.0.0.1",
		"another host":            "127.99.0.1",
		"this host with IPv6":     "[::1]",
		"a zone of another host":  "[fe80::1%253]",
		"a zone without escaping": "[fe80::1%3]",
		"another network":         "10.9.8.7",
		"unspecified":             "0.0.0.0",
		"host name":               "localhost",
		"multicast":               "239.255.255.250",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{
				Location: func(at string) string {
					u, _ := url.Parse(at)
					return "http://" + host + ":" + u.Port() + u.Path
				},
			}}}})
			counters := countConnsElsewhere(t, gw)
			mustMap(t, gw, newBackend(t, gw, upnp.Config{}), request(8080, 9000))
			for _, counter := range counters {
				if n := counter.count.Load(); n != 0 {
					t.Errorf("%v had %d connections", counter.addr, n)
				}
			}
		})
	}
}

// countConnsElsewhere counts connections to the gateway's port on other addresses
// of this host.
func countConnsElsewhere(t *testing.T, gw *gatewaytest.Gateway) []*connCounter {
	t.Helper()
	u, err := url.Parse(gw.UPnP().DescriptionURL())
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(u.Host).Port()
	var counters []*connCounter
	for _, at := range []string{"127.0.0.1", "127.99.0.1", "::1"} {
		if counter, is := countConns(t, netip.AddrPortFrom(netip.MustParseAddr(at), port)); is {
			counters = append(counters, counter)
		}
	}
	return counters
}

// TestLocationRefused checks that the backend does not fetch a location that is not
// a plain http URL.
func TestLocationRefused(t *testing.T) {
	for name, location := range map[string]func(string) string{
		"https":       func(at string) string { return strings.Replace(at, "http", "https", 1) },
		"credentials": func(at string) string { return strings.Replace(at, "//", "//admin:admin@", 1) },
		"a file":      func(string) string { return "file:///etc/passwd" },
		"port 0":      func(string) string { return "http://127.0.0.1:0/" },
		"none":        func(string) string { return "" },
		"very long":   func(at string) string { return at + strings.Repeat("x", 2000) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{Location: location}}}})
			err := newBackend(t, gw, upnp.Config{Wait: noReplyWait}).Probe(t.Context())
			wantError(t, err, backends.ErrNoReply, 0)
			if n := gw.Stats().Requests["upnp describe"]; n != 0 {
				t.Errorf("%d requests of the description", n)
			}
		})
	}
}

// TestLocationOfGateway checks that a gateway is recognised by the address of its
// description, even if its response came from another address.
func TestLocationOfGateway(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	other := respondToSearch(t, host(), func(int) string { return gw.UPnP().DescriptionURL() }, 1)
	b := newBackend(t, gw, upnp.Config{SSDP: []netip.AddrPort{other}, Only: true, Wait: searchWait / 2})
	all, err := b.Gateways(t.Context())
	if err != nil || len(all) != 1 || !all[0].Default || all[0].Device.Host != gw.Addr().Addr() {
		t.Errorf("found %+v, %v", all, err)
	}
}

// respondToSearch starts a device that answers each search with n locations.
func respondToSearch(t *testing.T, at netip.Addr, location func(i int) string, n int) netip.AddrPort {
	return fakeSSDP(t, at, func(conn *net.UDPConn, _ []byte, from netip.AddrPort) {
		for i := range n {
			_, _ = conn.WriteToUDPAddrPort(fmt.Appendf(nil,
				"HTTP/1.1 200 OK\r\nLOCATION: %s\r\nST: upnp:rootdevice\r\nUSN: uuid:%d::upnp:rootdevice\r\n\r\n", location(i), i), from)
		}
	})
}

// TestNonGatewayLimits checks that the number of requests to devices other than the
// gateway is limited, and that these devices do not prevent finding the gateway.
func TestNonGatewayLimits(t *testing.T) {
	t.Parallel()
	needHosts(t)
	var counters []*connCounter
	var ssdp []netip.AddrPort
	for range 40 {
		counter, is := countConns(t, netip.AddrPortFrom(host(), 0))
		if !is {
			t.Fatal("cannot listen")
		}
		counters = append(counters, counter)
		ssdp = append(ssdp, respondToSearch(t, counter.addr.Addr(), func(i int) string { return fmt.Sprintf("http://%v/%d", counter.addr, i) }, 25))
	}
	connections := func() (sum int32) {
		for _, counter := range counters {
			n := counter.count.Load()
			if sum += n; n > 4 { // two descriptions, each possibly fetched twice
				t.Errorf("%v had %d connections", counter.addr, n)
			}
		}
		return sum
	}
	gw := start(t, gatewaytest.Config{})
	b := newBackend(t, gw, upnp.Config{SSDP: ssdp, Wait: searchWait / 2})
	if all, err := b.Gateways(t.Context()); err == nil {
		t.Errorf("found %+v among other devices", all)
	}
	if n := connections(); n == 0 || n > 32 {
		t.Errorf("the other devices had %d connections", n)
	}
	b = newBackend(t, gw, upnp.Config{SSDP: append(ssdp, gw.SSDP())})
	mustMap(t, gw, b, request(8080, 9000))
	if n := connections(); n > 64 {
		t.Errorf("the other devices had %d connections", n)
	}
}

// TestGatewayResponseLimit checks that the number of locations fetched from the
// gateway itself is limited too.
func TestGatewayResponseLimit(t *testing.T) {
	t.Parallel()
	counter, is := countConns(t, netip.AddrPortFrom(host(), 0))
	if !is {
		t.Fatal("cannot listen")
	}
	at := respondToSearch(t, counter.addr.Addr(), func(i int) string { return fmt.Sprintf("http://%v/%d", counter.addr, i) }, 60)
	b, err := upnp.New(upnp.Config{Gateway: at.Addr(), SSDP: []netip.AddrPort{at}, Wait: searchWait / 2})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	wantError(t, b.Probe(t.Context()), backends.ErrNoReply, 0)
	if n := counter.count.Load(); n == 0 || n > 16 {
		t.Errorf("the gateway had %d connections", n)
	}
}
