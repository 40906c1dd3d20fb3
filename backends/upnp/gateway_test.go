package upnp

import (
	"net"
	"net/netip"
	"testing"
)

// TestOnLink checks that onLink accepts neighbours on this host's networks, but
// neither this host's own addresses nor addresses outside its networks.
func TestOnLink(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{}
	for _, a := range addrs {
		host, _, _ := net.ParseCIDR(a.String())
		own[host.String()] = true
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			t.Fatal(err)
		}
		if onLink(p.Addr(), "") {
			t.Errorf("%v is this host's own address", p.Addr())
		}
		if next := p.Addr().Next(); p.Contains(next) && p.Addr().Is4() && !own[next.String()] && !onLink(next, "") {
			t.Errorf("%v is on %v", next, p)
		}
	}
	for _, a := range []string{"198.51.100.7", "2001:db8:77::1"} {
		if onLink(netip.MustParseAddr(a), "") {
			t.Errorf("%v is on none of this host's networks", a)
		}
	}
	if onLink(netip.MustParseAddr("192.168.1.1"), "no such interface") {
		t.Error("onLink accepted an address on an interface that does not exist")
	}
}
