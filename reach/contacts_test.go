package reach

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
)

// TestContacts checks how long an address is remembered, and that memory is bounded.
func TestContacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c contacts
		addr, mapped := netip.MustParseAddr("45.45.45.3"), netip.MustParseAddr("::ffff:45.45.45.3")
		if c.has(addr) {
			t.Error("the empty memory has an address")
		}
		c.add(mapped)
		time.Sleep(natMemory - time.Nanosecond)
		if !c.has(addr) || !c.has(mapped) {
			t.Error("the address was forgotten too early")
		}
		time.Sleep(time.Nanosecond)
		if c.has(addr) {
			t.Error("the address is still remembered")
		}
		time.Sleep(time.Second)
		next := netip.MustParseAddr("10.0.0.0")
		for range 3 * maxContacts {
			next = next.Next()
			c.add(next)
			time.Sleep(time.Nanosecond)
		}
		if len(c.all) != maxContacts || !c.has(next) {
			t.Errorf("%d addresses are remembered, the last one: %v", len(c.all), c.has(next))
		}
	})
}

// TestDialHelperContacts checks that the address of a helper is remembered.
func TestDialHelperContacts(t *testing.T) {
	t.Parallel()
	host := netip.MustParseAddr("127.0.77.1")
	target := Target{Protocol: backends.UDP, Internal: netip.AddrPortFrom(loopback4, 8080)}
	conn, err := dialHelper(t.Context(), target, "udp", net.JoinHostPort(host.String(), "9"))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if !contacted.has(host) {
		t.Errorf("%v is not remembered", host)
	}
}

// TestArrivedFromContacted checks that the evidence says if this host has sent to the source of an
// arrival: a gateway may admit only such addresses.
func TestArrivedFromContacted(t *testing.T) {
	t.Parallel()
	asked, stranger := netip.MustParseAddrPort("9.9.9.10:4000"), netip.MustParseAddrPort("9.9.9.11:4000")
	contacted.add(asked.Addr())
	for from, want := range map[netip.AddrPort]bool{asked: true, stranger: false} {
		e, err := (&helper{name: "helper"}).arrived(testTarget, Evidence{}, testTarget.External.Addr(), Arrival{From: from, At: time.Now()}, time.Now())
		if err != nil || strings.Contains(e.Detail, "to which this host has sent") != want {
			t.Errorf("from %v: %q, %v", from, e.Detail, err)
		}
	}
}
