package discover

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// rtmsgs were captured on Linux 6.18 (x86-64), in a network namespace with v0 = 3
// (10.0.0.2/24, 2001:db8::2/64), v2 = 5 (10.0.2.2/24) and tun0 = 6 (10.9.0.2/32). Each is
// the body of one RTM_NEWROUTE; the comment is the command that caused the message.
var rtmsgs = []struct {
	name string
	hex  string
	want []route
}{
	{ // ip route get 198.41.0.4
		name: "lookup of IPv4",
		hex: `02200000fe0000010002000008000f00fe00000008000100c62900040800040003000000080007000a000002080005000a00
			0001080019000000000024000c000200000000000000000000000000000000000000000000000000000000000000`,
		want: []route{{
			dst: netip.MustParsePrefix("198.41.0.4/32"), via: netip.MustParseAddr("10.0.0.1"),
			src: netip.MustParseAddr("10.0.0.2"), index: 3, rank: 1, cloned: true,
		}},
	},
	{ // ip route add default via 10.0.0.1 dev v0 metric 100
		name: "default of IPv4",
		hex:  `02000000fe0300010000000008000f00fe0000000800060064000000080005000a0000010800040003000000`,
		want: []route{{
			dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("10.0.0.1"), index: 3, metric: 100, rank: 1,
		}},
	},
	{ // ip -6 route get 2001:503:ba3e::2:30
		name: "lookup of IPv6",
		hex: `0a808000fe0300010000000008000f00fe0000001400010020010503ba3e0000000000000002003014000200000000000000
			000000000000000000001400070020010db8000000000000000000000002080006000004000014000500fe80000000000000
			0000000000000001080004000300000024000c00020000000000000000000000000000000000000000000000000000000000
			00000500140001000000`,
		want: []route{{
			dst: netip.MustParsePrefix("2001:503:ba3e::2:30/128"), via: netip.MustParseAddr("fe80::1"),
			src: netip.MustParseAddr("2001:db8::2"), index: 3, metric: 1024,
		}},
	},
	{ // ip -6 route add default via fe80::1 dev v0 metric 1024 pref high
		name: "default of IPv6",
		hex: `0a000000fe0300010000000008000f00fe000000080006000004000014000500fe8000000000000000000000000000010800
			04000300000024000c0000000000000000000000000000000000000000000000000000000000000000000500140001000000`,
		want: []route{{
			dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::1"), index: 3, metric: 1024,
		}},
	},
	{ // ip route add default via 10.0.2.1 dev v2 table 100 src 10.0.2.2
		name: "policy table",
		hex:  `02000000640300010000000008000f0064000000080007000a000202080005000a0002010800040005000000`,
		want: []route{{
			dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("10.0.2.1"),
			src: netip.MustParseAddr("10.0.2.2"), index: 5, rank: 9,
		}},
	},
	{ // ip route add default metric 7 nexthop via 10.0.0.1 dev v0 nexthop via 10.0.2.1 dev v2 weight 3
		name: "multipath of IPv4",
		hex: `02000000fe0300010000000008000f00fe0000000800060007000000240009001000000003000000080005000a0000011000
			000205000000080005000a000201`,
		want: []route{
			{dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("10.0.0.1"), index: 3, metric: 7, rank: 1},
			{dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("10.0.2.1"), index: 5, metric: 7, rank: 1},
		},
	},
	{ // ip -6 route add default nexthop via fe80::1 dev v0 nexthop via fe80::2 dev v2
		name: "multipath of IPv6",
		hex: `0a000000fe0300010000000008000f00fe00000008000600000400003c0009001c0000000300000014000500fe8000000000
			000000000000000000011c0000000500000014000500fe80000000000000000000000000000224000c000000000000000000
			0000000000000000000000000000000000000000000000000500140000000000`,
		want: []route{
			{dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::1"), index: 3, metric: 1024, rank: 1},
			{dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::2"), index: 5, metric: 1024, rank: 1},
		},
	},
	{ // ip -4 route add default via inet6 fe80::1 dev v0
		name: "IPv4 through an IPv6 next hop",
		hex: `02000000fe0300010000000008000f00fe000000160012000a00fe8000000000000000000000000000010000080004000300
			0000`,
		want: []route{{
			dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("fe80::1"), index: 3, rank: 1,
		}},
	},
	{ // ip route add default dev tun0
		name: "tunnel without a next hop",
		hex:  `02000000fe03fd011000000008000f00fe0000000800040006000000`,
		want: []route{{dst: netip.MustParsePrefix("0.0.0.0/0"), index: 6, rank: 1}},
	},
	{ // ip route add unreachable default metric 5
		name: "unreachable",
		hex:  `02000000fe0300070000000008000f00fe0000000800060005000000`,
		want: []route{{dst: netip.MustParsePrefix("0.0.0.0/0"), metric: 5, rank: 1, refusal: "unreachable route"}},
	},
	{ // ip -6 route add blackhole default metric 5
		name: "blackhole",
		hex: `0a000000fe0300060000000008000f00fe0000000800060005000000080004000100000024000c0000000000000000000000
			000000000000000000000000000000000000000000000500140000000000`,
		want: []route{{dst: netip.MustParsePrefix("::/0"), index: 1, metric: 5, rank: 1, refusal: "blackhole route"}},
	},
	{ // ip route add prohibit default metric 5
		name: "prohibit",
		hex:  `02000000fe0300080000000008000f00fe0000000800060005000000`,
		want: []route{{dst: netip.MustParsePrefix("0.0.0.0/0"), metric: 5, rank: 1, refusal: "prohibited route"}},
	},
	{ // ip route get 10.0.0.2
		name: "this host",
		hex: `02200000fe0000020002008008000f00fe000000080001000a0000020800040001000000080007000a000002080019000000
			000024000c000100000000000000000000000000000000000000000000000000000000000000`,
		want: []route{{
			dst: netip.MustParsePrefix("10.0.0.2/32"), src: netip.MustParseAddr("10.0.0.2"), index: 1, rank: 1,
			refusal: "it is this host", cloned: true,
		}},
	},
	{ // ip route get 10.0.0.77
		name: "neighbour",
		hex: `02200000fe0000010002000008000f00fe000000080001000a00004d0800040003000000080007000a000002080019000000
			000024000c000200000000000000000000000000000000000000000000000000000000000000`,
		want: []route{{
			dst: netip.MustParsePrefix("10.0.0.77/32"), src: netip.MustParseAddr("10.0.0.2"), index: 3, rank: 1, cloned: true,
		}},
	},
}

func TestParseRtmsg(t *testing.T) {
	for _, tt := range rtmsgs {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.hex)
			got, err := parseRtmsg(b, binary.LittleEndian)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, got, tt.want)
			for n := range b {
				got, err := parseRtmsg(b[:n], binary.LittleEndian)
				switch {
				case err != nil && !errors.Is(err, errMalformed):
					t.Errorf("cut to %d: %v is not errMalformed", n, err)
				case err == nil && n < sizeofRtmsg:
					t.Errorf("cut to %d: got %+v", n, got)
				}
			}
		})
	}
}

func TestParseRtmsgMalformed(t *testing.T) {
	const head, head6 = `02000000fe030001 00000000`, `0a000000fe030001 00000000`
	tests := map[string]string{
		"family":                `07000000fe030001 00000000`,
		"prefix too long":       `02210000fe030001 00000000`,
		"attribute too short":   head + `0300 0500`,
		"attribute too long":    head + `0900 0500 0a000001`,
		"attribute cut":         head + `0800`,
		"address of 3 bytes":    head + `0700 0500 0a0000 00`,
		"IPv6 address in IPv4":  head + `1400 0500 fe80 00*13 01`,
		"IPv4 address in IPv6":  head6 + `0800 0500 0a000001`,
		"number of 2 bytes":     head + `0600 0400 0300 0000`,
		"RTA_VIA of 1 byte":     head + `0500 1200 0a 000000`,
		"RTA_VIA address short": head + `0a00 1200 0a00 fe800000 0000`,
		"next hop too short":    head + `0c00 0900 0700 0000 03000000`,
		"next hop too long":     head + `0c00 0900 1000 0000 03000000`,
		"next hop cut":          head + `0800 0900 0800 0000`,
	}
	for name, s := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := parseRtmsg(unhex(t, s), binary.LittleEndian); !errors.Is(err, errMalformed) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestParseRtmsgBigEndian(t *testing.T) {
	b := unhex(t, `02000000fe030001 00000000
		0008 000f 000000fe // RTA_TABLE main
		0008 0006 00000064 // RTA_PRIORITY 100
		0008 0005 0a000001 // RTA_GATEWAY
		0008 0004 00000003 // RTA_OIF`)
	got, err := parseRtmsg(b, binary.BigEndian)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, rtmsgs[1].want)
}

func TestParseRtmsgDead(t *testing.T) {
	// The captured IPv4 multipath route, with RTNH_F_DEAD set on the first next hop.
	b := unhex(t, rtmsgs[5].hex)
	b[sizeofRtmsg+8+8+4+2] |= rtnhDead
	got, err := parseRtmsg(b, binary.LittleEndian)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].isDefault() || !got[1].isDefault() {
		t.Errorf("got %+v", got)
	}
}

func TestAppendRouteRequest(t *testing.T) {
	got := appendRouteRequest(nil, binary.LittleEndian, internet4, 3, rtmFibMatch)
	want := unhex(t, `02 20 00 00 00 00 00 00 00200000 // struct rtmsg: AF_INET, /32, RTM_F_FIB_MATCH
		0800 0100 c6290004 // RTA_DST
		0800 0400 03000000 // RTA_OIF`)
	equal(t, got, want)
	got = appendRouteRequest(nil, binary.LittleEndian, internet6, 0, 0)
	want = unhex(t, `0a 80 00 00 00 00 00 00 00000000
		1400 0100 20010503ba3e00000000000000020030`)
	equal(t, got, want)
}

func FuzzParseRtmsg(f *testing.F) {
	for _, tt := range rtmsgs {
		f.Add(unhex(f, tt.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := slices.Clone(b)
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			routes, err := parseRtmsg(b, order)
			checkRoutes(t, routes, err)
		}
		equal(t, b, before)
	})
}

// checkRoutes checks what is true for the result of every parser and every input.
func checkRoutes(t *testing.T, routes []route, err error) {
	t.Helper()
	if err != nil && (len(routes) > 0 || !errors.Is(err, errMalformed)) {
		t.Fatalf("got %+v with error %v", routes, err)
	}
	for _, r := range routes {
		if !r.dst.IsValid() {
			t.Fatalf("no destination: %+v", r)
		}
		if r.via.Zone() != "" || r.src.Zone() != "" {
			t.Fatalf("zone: %+v", r)
		}
		_ = r.gateway("eth0", r.src)
	}
}

// TestParseIfaddr parses RTM_NEWADDR messages. They begin with a little-endian struct
// ifaddrmsg (family, prefix length, flags, scope, index); the attributes follow.
func TestParseIfaddr(t *testing.T) {
	const (
		addr  = "1400 0100 20010db8 00000000 00000000 00000010" // IFA_ADDRESS
		flags = "0800 0800 "                                    // IFA_FLAGS
	)
	for name, test := range map[string]struct {
		message   string
		want      ifaddr
		permanent bool
	}{
		"permanent":    {"0a 40 80 00 02000000" + addr + flags + "80000000", ifaddr{2, netip.MustParseAddr("2001:db8::10"), 0x80}, true},
		"managed":      {"0a 40 00 00 02000000" + addr + flags + "00010000", ifaddr{2, netip.MustParseAddr("2001:db8::10"), 0x100}, true},
		"temporary":    {"0a 40 01 00 03000000" + addr + flags + "01000000", ifaddr{3, netip.MustParseAddr("2001:db8::10"), 1}, false},
		"no IFA_FLAGS": {"0a 40 20 00 03000000" + addr, ifaddr{3, netip.MustParseAddr("2001:db8::10"), 0x20}, false},
		"IPv4":         {"02 18 80 00 02000000 0800 0100 c0000201", ifaddr{2, netip.MustParseAddr("192.0.2.1"), 0x80}, true},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(test.message, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseIfaddr(b, binary.LittleEndian)
		if err != nil || got != test.want || got.isPermanent() != test.permanent {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
		for n := range b { // a truncated message causes no panic, and has no other address
			if cut, err := parseIfaddr(b[:n], binary.LittleEndian); err == nil && cut.addr.IsValid() && cut.addr != got.addr {
				t.Errorf("%s, %d bytes: %+v", name, n, cut)
			}
		}
	}
}
