package ssdp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// Answers are distinct by address, location and device.
func TestDistinct(t *testing.T) {
	in := newInbox(nil)
	for _, d := range []struct{ location, usn, from string }{
		{"http://a", "uuid:1::x", "192.168.1.1:1900"},
		{"http://b", "uuid:1::x", "192.168.1.1:1900"},
		{"http://a", "uuid:2::x", "192.168.1.1:1900"},
		{"http://a", "uuid:1::x", "192.168.1.2:1900"},
		{"http://a", "uuid:1::x", "[fe80::1%a]:1900"},
		{"http://a", "uuid:1::x", "[fe80::1%b]:1900"},
		{"http://a", "", "192.168.1.1:1900"},
	} {
		before := len(in.answers)
		text := "HTTP/1.1 200\nLOCATION: " + d.location + "\nUSN: " + d.usn + "\n"
		from := netip.MustParseAddrPort(d.from)
		in.take([]byte(text), from)
		in.take([]byte(text), from)
		in.take([]byte(text+"ST: another\n"), netip.AddrPortFrom(from.Addr(), 5))
		if n := len(in.answers) - before; n != 1 {
			t.Errorf("%+v is told %d times", d, n)
		}
	}
}

// A flood has bounds, fills no memory while the loop is slow, and crowds out
// neither another address nor one that was asked itself.
func TestFlood(t *testing.T) {
	in := newInbox([]netip.AddrPort{Multicast, gateway})
	flood := func(from netip.Addr) int {
		before := len(in.answers)
		for i := range 1000 {
			in.take([]byte(answer(fmt.Sprint("http://x/", i))), netip.AddrPortFrom(from, 1))
		}
		return len(in.answers) - before
	}
	stranger := netip.MustParseAddr("192.168.1.2")
	for want := range slices.Values([]int{64, 64, 64, 64, 0, 0}) {
		if n := flood(stranger); n != want {
			t.Errorf("%d answers of %v, want %d", n, stranger, want)
		}
		stranger = stranger.Next()
	}
	if n := flood(gateway.Addr()); n != 64 {
		t.Errorf("%d answers of the gateway, want 64", n)
	}
	if len(in.seen) != 320 || len(in.perAddr) != 5 || cap(in.answers) != 320 {
		t.Errorf("%d, %d and %d", len(in.seen), len(in.perAddr), cap(in.answers))
	}
}
