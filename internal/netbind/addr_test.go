package netbind_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/natforward/goforward/internal/netbind"
)

func TestHasAddr(t *testing.T) {
	t.Parallel()
	wants := map[string]bool{
		"127.0.0.1":        true,
		"::ffff:127.0.0.1": true,
		"45.45.45.99":      false,
		"203.0.113.9":      false,
		"2001:db8::9":      false,
		"0.0.0.0":          false,
		"::":               false,
		"224.0.0.1":        false,
		"255.255.255.255":  false,
		"fe80::1%nowhere0": false,
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs { // the addresses of this host
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			wants[n.IP.String()] = true
		}
	}
	for text, want := range wants {
		if got := netbind.HasAddr(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	if netbind.HasAddr(netip.Addr{}) {
		t.Error("this host has the zero Addr")
	}
}
