package discover

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
)

func layoutOf(l ribLayout) *ribLayout {
	l.order = binary.LittleEndian
	return &l
}

// ribs are little-endian messages, laid out by hand from net/route.h, netinet/in.h,
// netinet6/in6.h and net/if_dl.h of each system. The lengths and truncated masks have the
// same form as in captured messages.
var ribs = []struct {
	name   string
	layout *ribLayout
	hex    string
	want   []ribMessage
}{
	{
		name:   "darwin",
		layout: layoutOf(ribDarwin),
		hex: `
		// default via 192.168.1.1 on interface 6
		8000 05 04 0600 0000            // rtm_msglen, version, type RTM_GET, index, padding
		03080100 07000000               // rtm_flags UP GATEWAY STATIC PRCLONING, rtm_addrs DST GATEWAY NETMASK
		00*4 00*4 00*4 00*4 00*4 00*56  // rtm_pid, seq, errno, use, inits, rmx
		10 02 0000 00000000 00*8        // sockaddr_in 0.0.0.0
		10 02 0000 c0a80101 00*8        // sockaddr_in 192.168.1.1
		00 02 0000                      // mask without length
		// default via fe80::1 on interface 6, embedded in the address
		9800 05 04 0600 0000
		03080100 07000000 00*20 00*56
		1c 1e 0000 00000000 00*16 00000000
		1c 1e 0000 00000000 fe800006000000000000000000000001 00000000
		02 1e 0000
		// default on utun0 (17), scoped, next hop fe80:: without a host
		9800 05 04 1100 0000
		03000001 07000000 00*20 00*56
		1c 1e 0000 00000000 00*16 00000000
		1c 1e 0000 00000000 fe800011000000000000000000000000 00000000
		02 1e 0000
		// default on interface 17 by its link address; no rtm_index
		8400 05 04 0000 0000
		01080000 07000000 00*20 00*56
		10 02 0000 00000000 00*8
		14 12 1100 01 00 00 00 00*12    // sockaddr_dl: index 17
		00 02 0000
		// 192.168.1.0/24 on interface 6
		8800 05 04 0600 0000
		01010000 07000000 00*20 00*56
		10 02 0000 c0a80100 00*8
		14 12 0600 06 00 06 00 00*12
		07 ff ffff ffffff 00            // mask of 7 bytes, invalid family
		// 2001:db8:5::/48, blackhole
		a400 05 04 0600 0000
		03180000 07000000 00*20 00*56
		1c 1e 0000 00000000 20010db8000500000000000000000000 00000000
		1c 1e 0000 00000000 20010db8000000000000000000000001 00000000
		0e 1e 0000 00000000 ffffffffffff 0000
		// RTM_IFINFO, which the parser skips
		0800 05 0e 00000000`,
		want: []ribMessage{
			{route: route{dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("192.168.1.1"), index: 6}},
			{route: route{dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::1"), index: 6}},
			{route: route{dst: netip.MustParsePrefix("::/0"), index: 17, rank: 1}},
			{route: route{dst: netip.MustParsePrefix("0.0.0.0/0"), index: 17}},
			{route: route{dst: netip.MustParsePrefix("192.168.1.0/24"), index: 6}},
			{route: route{
				dst: netip.MustParsePrefix("2001:db8:5::/48"), via: netip.MustParseAddr("2001:db8::1"), index: 6,
				refusal: "blackhole route",
			}},
		},
	},
	{
		name:   "darwin, reply to RTM_GET",
		layout: layoutOf(ribDarwin),
		hex: `
		a400 05 04 0600 0000
		43080100 37000000               // … IFP IFA
		d2040000 07000000 00*4 00*8 00*56 // pid 1234, seq 7
		10 02 0000 00000000 00*8
		10 02 0000 c0a80101 00*8
		00 02 0000
		14 12 0600 06 03 06 00 656e30 001122334455 00*3 // en0
		10 02 0000 c0a80117 00*8        // 192.168.1.23`,
		want: []ribMessage{{
			route: route{
				dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("192.168.1.1"),
				src: netip.MustParseAddr("192.168.1.23"), index: 6,
			},
			pid: 1234, seq: 7,
		}},
	},
	{
		name:   "darwin, destination without length",
		layout: layoutOf(ribDarwin),
		hex: `
		8000 05 04 0600 0000
		03080100 07000000 00*20 00*56
		00 1e 0000
		1c 1e 0000 00000000 fe800006000000000000000000000001 00000000
		02 1e 0000`,
		want: []ribMessage{
			{route: route{dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::1"), index: 6}},
		},
	},
	{
		name:   "freebsd, 64 bits",
		layout: layoutOf(ribFreeBSD64),
		hex: `
		c000 05 04 0200 0000
		03080000 07000000 00*4 00*4 00*4 00*4 // flags UP GATEWAY STATIC, addrs, pid, seq, errno, fmask
		00*8 00*112                     // rtm_inits, rmx
		10 02 0000 00000000 00*8
		10 02 0000 c0000201 00*8
		00*8
		// default via fe80::1, the interface in the scope id
		f800 05 04 0200 0000
		03080000 07000000 00*16 00*8 00*112
		1c 1c 0000 00000000 00*16 00000000 00*4
		1c 1c 0000 00000000 fe800000000000000000000000000001 02000000 00*4
		1c 1c 0000 00000000 00*16 00000000 00*4
		// 192.0.2.9, this host
		b800 05 04 0100 0000
		05002000 03000000 00*16 00*8 00*112
		10 02 0000 c0000209 00*8
		10 02 0000 c0000209 00*8
		`,
		want: []ribMessage{
			{route: route{dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("192.0.2.1"), index: 2}},
			{route: route{dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::1"), index: 2}},
			{route: route{
				dst: netip.MustParsePrefix("192.0.2.9/32"), index: 1,
				refusal: "it is this host",
			}},
		},
	},
	{
		name:   "freebsd, 32 bits",
		layout: layoutOf(ribFreeBSD32),
		hex: `
		8000 05 04 0200 0000
		03080000 07000000 00*16 00*4 00*56
		10 02 0000 00000000 00*8
		10 02 0000 c0000201 00*8
		00*4`,
		want: []ribMessage{
			{route: route{dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("192.0.2.1"), index: 2}},
		},
	},
	{
		name:   "openbsd, 64 bits",
		layout: layoutOf(ribOpenBSD64),
		hex: `
		b800 05 04 6000 0100 0000 08 00 // msglen, version, type, hdrlen 96, index, tableid, priority 8, mpls
		37000000 03080000 00*4          // addrs DST GATEWAY NETMASK IFP IFA, flags, fmask
		00*4 00*4 00*4 00*4 00*56       // pid, seq, errno, inits, rmx
		10 02 0000 00000000 00*8
		10 02 0000 c0000201 00*8
		00*8
		20 12 0100 06 03 06 00 766930 001122334455 00*15 // sockaddr_dl of 32 bytes, vi0
		10 02 0000 c0000205 00*8        // the tests below truncate this
		// default via fe80::1, with a header that is 8 bytes longer, interface down
		c800 05 04 6800 0100 0000 88 00
		07000000 03080000 00*4 00*16 00*56 00*8
		1c 18 0000 00000000 00*16 00000000 00*4
		1c 18 0000 00000000 fe800001000000000000000000000001 01000000 00*4
		1c 18 0000 00000000 00*16 00000000 00*4`,
		want: []ribMessage{
			{route: route{
				dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("192.0.2.1"),
				src: netip.MustParseAddr("192.0.2.5"), index: 1, metric: 8,
			}},
			{route: route{dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::1"), index: 1, metric: 8}},
		},
	},
	{
		name:   "openbsd, request failed with ESRCH",
		layout: layoutOf(ribOpenBSD32),
		hex:    `6000 05 04 6000 0000 0000 00 00 00000000 00000000 00*4 d2040000 07000000 03000000 00*4 00*56`,
		want:   []ribMessage{{pid: 1234, seq: 7, errno: 3, route: route{refusal: "route is down"}}},
	},
	{
		name:   "netbsd",
		layout: layoutOf(ribNetBSD),
		hex: `
		a000 04 04 0100 0000
		03080000 07000000 00*4 00*4 00*4 00*4 00*4 00*4 // flags, addrs, pid, seq, errno, use, inits, padding
		00*80                           // rmx
		10 02 0000 00000000 00*8
		10 02 0000 c0000201 00*8
		00*8
		// default via fe80::1, with the interface embedded in the address
		d800 04 04 0100 0000
		03080000 07000000 00*24 00*80
		1c 18 0000 00000000 00*16 00000000 00*4
		1c 18 0000 00000000 fe800001000000000000000000000001 00000000 00*4
		1c 18 0000 00000000 00*16 00000000 00*4
		// default on pppoe0 (2), and 10.0.0.0/24 with the address of this host as gateway
		a000 04 04 0200 0000
		03080000 07000000 00*24 00*80
		10 02 0000 00000000 00*8
		10 02 0000 00000001 00*8
		00*8
		a000 04 04 0100 0000
		01010000 07000000 00*24 00*80
		10 02 0000 0a000000 00*8
		10 02 0000 0a000005 00*8
		07 00 0000 ffffff 00
		// reject 203.0.113.0/24
		a000 04 04 0100 0000
		0b080000 07000000 00*24 00*80
		10 02 0000 cb007100 00*8
		10 02 0000 7f000001 00*8
		07 00 0000 ffffff 00`,
		want: []ribMessage{
			{route: route{dst: netip.MustParsePrefix("0.0.0.0/0"), via: netip.MustParseAddr("192.0.2.1"), index: 1}},
			{route: route{dst: netip.MustParsePrefix("::/0"), via: netip.MustParseAddr("fe80::1"), index: 1}},
			{route: route{dst: netip.MustParsePrefix("0.0.0.0/0"), index: 2}},
			{route: route{dst: netip.MustParsePrefix("10.0.0.0/24"), index: 1}},
			{route: route{
				dst: netip.MustParsePrefix("203.0.113.0/24"), via: netip.MustParseAddr("127.0.0.1"), index: 1,
				refusal: "unreachable route",
			}},
		},
	},
}

func TestParseRIB(t *testing.T) {
	for _, tt := range ribs {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.hex)
			got, err := tt.layout.parse(b)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, got, tt.want)

			ends := map[int]bool{0: true}
			for at := 0; at < len(b); {
				at += int(binary.LittleEndian.Uint16(b[at:]))
				ends[at] = true
			}
			for n := range b {
				if got, err := tt.layout.parse(b[:n]); ends[n] != (err == nil) || err != nil && !errors.Is(err, errMalformed) {
					t.Errorf("cut to %d: got %+v, %v", n, got, err)
				}
			}
		})
	}
}

// TestParseRIBShortened checks messages that are truncated and have a matching length field.
// They must fail too, unless only the padding is missing, which systems may omit.
func TestParseRIBShortened(t *testing.T) {
	for _, tt := range ribs {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, tt.hex)
			first := int(binary.LittleEndian.Uint16(b))
			for n := 4; n < first; n++ {
				cut := append([]byte(nil), b[:n]...)
				binary.LittleEndian.PutUint16(cut, uint16(n))
				got, err := tt.layout.parse(cut)
				if err == nil && first-n > tt.layout.align {
					t.Errorf("shortened to %d of %d: got %+v", n, first, got)
				}
			}
		})
	}
}

func TestValidRoutes(t *testing.T) {
	got := validRoutes([]ribMessage{{errno: 3}, {route: route{dst: netip.MustParsePrefix("::/0"), index: 5}}})
	equal(t, got, []route{{dst: netip.MustParsePrefix("::/0"), index: 5}})
}

func FuzzParseRIB(f *testing.F) {
	for _, tt := range ribs {
		f.Add(unhex(f, tt.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, tt := range ribs {
			msgs, err := tt.layout.parse(b)
			checkRoutes(t, validRoutes(msgs), err)
		}
	})
}
