package discover

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// equal compares got and want. It compares the types of package netip with ==.
func equal(t *testing.T, got, want any) {
	t.Helper()
	opts := []cmp.Option{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.AllowUnexported(route{}, ribMessage{}, defaultRoute{}),
	}
	if d := cmp.Diff(want, got, opts...); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// unhex decodes hexadecimal digits with comments; "00*12" means twelve zero bytes.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for line := range strings.Lines(s) {
		code, _, _ := strings.Cut(line, "//")
		for _, tok := range strings.Fields(code) {
			tok, times, _ := strings.Cut(tok, "*")
			n := 1
			if times != "" {
				n, _ = strconv.Atoi(times)
			}
			b, err := hex.DecodeString(tok)
			if err != nil {
				t.Fatalf("%q: %v", tok, err)
			}
			for range n {
				out = append(out, b...)
			}
		}
	}
	return out
}

func TestRouteArguments(t *testing.T) {
	tests := []struct {
		dst     netip.Addr
		noRoute bool
	}{
		{netip.Addr{}, false},
		{netip.IPv4Unspecified(), false},
		{netip.IPv6Unspecified(), false},
		{netip.MustParseAddr("127.0.0.1"), true},
		{netip.MustParseAddr("::ffff:127.0.0.1"), true},
		{netip.IPv6Loopback(), true},
	}
	for _, tt := range tests {
		g, err := Route(tt.dst)
		if err == nil || errors.Is(err, ErrNoRoute) != tt.noRoute || g != (Gateway{}) {
			t.Errorf("Route(%v) = %+v, %v", tt.dst, g, err)
		}
	}
}

func TestErrorText(t *testing.T) {
	err := noRoute(internet4, errThisHost)
	if got, want := err.Error(), "discover: no route to the internet: it is this host"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, ErrNoRoute) || !errors.Is(err, errThisHost) {
		t.Error("the error does not wrap ErrNoRoute and the reason")
	}
}

func TestInternetAddrs(t *testing.T) {
	equal(t, internet4, netip.MustParseAddr("198.41.0.4"))
	equal(t, internet6, netip.MustParseAddr("2001:503:ba3e::2:30"))
}

func TestSortGateways(t *testing.T) {
	gw := func(addr string, index, metric int) Gateway {
		g := Gateway{Index: index, Metric: metric}
		if addr != "" {
			g.Addr = netip.MustParseAddr(addr)
		}
		return g
	}
	tests := []struct {
		name         string
		routes, used []defaultRoute
		want         []Gateway
	}{
		{name: "no routes", want: []Gateway{}},
		{
			name: "IPv4 first, then table, then metric, then order of the input",
			routes: []defaultRoute{
				{Gateway: gw("fe80::2%b", 2, 5), is6: true},
				{Gateway: gw("10.0.0.3", 3, 1), rank: 8},
				{Gateway: gw("10.0.0.2", 2, 200)},
				{Gateway: gw("10.0.0.9", 9, 100)},
				{Gateway: gw("10.0.0.1", 1, 100)},
			},
			want: []Gateway{
				gw("10.0.0.9", 9, 100), gw("10.0.0.1", 1, 100), gw("10.0.0.2", 2, 200),
				gw("10.0.0.3", 3, 1), gw("fe80::2%b", 2, 5),
			},
		},
		{
			name: "the used route is first in its family, once",
			routes: []defaultRoute{
				{Gateway: gw("10.0.0.1", 1, 100)},
				{Gateway: gw("10.0.0.2", 2, 200), rank: 8},
				{Gateway: gw("fe80::2%b", 2, 5), is6: true},
			},
			used: []defaultRoute{{Gateway: gw("10.0.0.2", 2, 200)}, {Gateway: gw("fe80::2%b", 2, 5), is6: true}},
			want: []Gateway{gw("10.0.0.2", 2, 200), gw("10.0.0.1", 1, 100), gw("fe80::2%b", 2, 5)},
		},
		{
			name:   "the used route is not in the list",
			routes: []defaultRoute{{Gateway: gw("10.0.0.1", 1, 100)}},
			used:   []defaultRoute{{Gateway: gw("", 7, 0)}},
			want:   []Gateway{gw("", 7, 0), gw("10.0.0.1", 1, 100)},
		},
		{
			name:   "the same next hop in two tables",
			routes: []defaultRoute{{Gateway: gw("10.0.0.1", 1, 100)}, {Gateway: gw("10.0.0.1", 1, 50), rank: 8}},
			used:   []defaultRoute{{Gateway: gw("10.0.0.1", 1, 50)}},
			want:   []Gateway{gw("10.0.0.1", 1, 50), gw("10.0.0.1", 1, 100)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { equal(t, sortGateways(tt.routes, tt.used), tt.want) })
	}
}

func TestLongestMatch(t *testing.T) {
	r := func(dst string, index int, metric int64) route {
		return route{dst: netip.MustParsePrefix(dst), index: index, metric: metric}
	}
	table := []route{
		r("0.0.0.0/0", 1, 10), r("0.0.0.0/0", 2, 5), r("198.0.0.0/8", 3, 0),
		{dst: netip.MustParsePrefix("::/0"), index: 1, rank: 1},
		r("::/0", 4, 0),
	}
	tests := []struct {
		dst         string
		index, want int // want 0: no route
	}{
		{"192.0.2.1", 0, 2},
		{"192.0.2.1", 1, 1},
		{"198.41.0.4", 0, 3},
		{"198.41.0.4", 1, 1},
		{"192.0.2.1", 3, 0},
		{"2001:db8::1", 0, 4},
		{"2001:db8::1", 1, 1},
		{"fe80::1%eth0", 0, 4},
	}
	for _, tt := range tests {
		got, ok := longestMatch(table, netip.MustParseAddr(tt.dst), tt.index)
		if got.index != tt.want || ok != (tt.want != 0) {
			t.Errorf("%s on %d: got %+v, %v", tt.dst, tt.index, got, ok)
		}
	}
}

func TestPickLocal(t *testing.T) {
	var addrs []netip.Prefix
	for _, s := range []string{"fe80::5/64", "10.1.0.5/24", "10.2.0.5/24", "fd00::5/64", "2001:db8::5/64", "2001:db8:1::5/64"} {
		addrs = append(addrs, netip.MustParsePrefix(s))
	}
	tests := []struct {
		addrs     []netip.Prefix
		via, want string
		is6       bool
	}{
		{addrs, "10.2.0.1", "10.2.0.5", false},
		{addrs, "10.3.0.1", "10.1.0.5", false},
		{addrs, "", "10.1.0.5", false},
		{addrs, "fe80::1", "2001:db8::5", true},
		{addrs, "2001:db8:1::1", "2001:db8:1::5", true},
		{addrs[:4], "fe80::1", "fd00::5", true},
		{addrs[:3], "fe80::1", "fe80::5", true},
		{addrs[1:3], "fe80::1", "", true},
		{nil, "10.2.0.1", "", false},
	}
	for _, tt := range tests {
		var via, want netip.Addr
		if tt.via != "" {
			via = netip.MustParseAddr(tt.via)
		}
		if tt.want != "" {
			want = netip.MustParseAddr(tt.want)
		}
		if got := pickLocal(tt.addrs, via, tt.is6); got != want {
			t.Errorf("via %s: got %v, want %v", tt.via, got, want)
		}
	}
}

func TestLinkLocalZones(t *testing.T) {
	r := route{
		dst: netip.MustParsePrefix("::/0"), index: 7, metric: 3,
		via: netip.MustParseAddr("fe80::1"), src: netip.MustParseAddr("2001:db8::2"),
	}
	want := Gateway{
		Addr: netip.MustParseAddr("fe80::1%eth0"), Local: netip.MustParseAddr("2001:db8::2"),
		Interface: "eth0", Index: 7, Metric: 3,
	}
	equal(t, r.gateway("eth0", netip.Addr{}), want)
	want.Local, want.Interface, want.Addr = netip.MustParseAddr("fe80::5%7"), "", netip.MustParseAddr("fe80::1%7")
	equal(t, r.gateway("", netip.MustParseAddr("fe80::5")), want)
}

// TestLargestMetric checks that the largest metric of 32 bits is the least preferred, also
// on systems with an int of 32 bits.
func TestLargestMetric(t *testing.T) {
	rtm := unhex(t, `02000000fe030001 00000000
		0800 0600 ffffffff  // RTA_PRIORITY 4294967295
		0800 0500 0a000001  // RTA_GATEWAY
		0800 0400 03000000  // RTA_OIF`)
	linux, err := parseRtmsg(rtm, binary.LittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	table := unhex(t, winTable)
	winOrder.PutUint32(table[ipforwardTableHead+ipforwardMetric:], math.MaxUint32)
	windows, err := parseIPForwardTable(table)
	if err != nil {
		t.Fatal(err)
	}
	for name, large := range map[string]route{"Linux": linux[0], "Windows": windows[0]} {
		small := large
		small.metric, small.index = 100, large.index+1
		if best, _ := longestMatch([]route{large, small}, internet4, 0); best.index != small.index {
			t.Errorf("%s: metric %d is preferred to %d", name, large.metric, small.metric)
		}
		all := sortGateways([]defaultRoute{{Gateway: large.gateway("", netip.Addr{})}, {Gateway: small.gateway("", netip.Addr{})}}, nil)
		if all[0].Index != small.index || all[1].Metric <= all[0].Metric {
			t.Errorf("%s: the order is %+v", name, all)
		}
	}
}
