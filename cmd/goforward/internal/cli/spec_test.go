package cli

import (
	"errors"
	"net/netip"
	"testing"
)

// All addresses are of one family, which says which gateway is meant.
func TestSetFamily(t *testing.T) {
	t.Parallel()
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	endpoint := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }
	for _, tt := range []struct {
		name         string
		wish         spec
		settings     settings
		isSix, fails bool
	}{
		{name: "nothing"},
		{name: "only -6", wish: spec{ipv6: true}, isSix: true},
		{name: "a gateway", settings: settings{gateway: endpoint(six)}, isSix: true},
		{name: "a source", settings: settings{source: six}, isSix: true},
		{name: "a peer", wish: spec{from: endpoint(six)}, isSix: true},
		{name: "another host", wish: spec{to: six}, isSix: true},
		{name: "all of IPv4", wish: spec{to: four, from: endpoint(four)}, settings: settings{gateway: endpoint(four), source: four}},
		{name: "-6 and a gateway", wish: spec{ipv6: true}, settings: settings{gateway: endpoint(four)}, fails: true},
		{name: "a device", settings: settings{igd: "http://[2001:db8::1]:5000/"}, isSix: true},
		{name: "-6 and a device", wish: spec{ipv6: true}, settings: settings{igd: "http://192.0.2.1:5000/"}, fails: true},
		{name: "-6 and a source", wish: spec{ipv6: true}, settings: settings{source: four}, fails: true},
		{name: "-6 and another host", wish: spec{ipv6: true, to: four}, fails: true},
		{name: "-6 and a peer", wish: spec{ipv6: true, from: endpoint(four)}, fails: true},
		{name: "a peer and another host", wish: spec{to: four, from: endpoint(six)}, fails: true},
		{name: "a gateway and a peer", wish: spec{from: endpoint(four)}, settings: settings{gateway: endpoint(six)}, fails: true},
	} {
		err := (&app{settings: tt.settings}).setFamily(&tt.wish)
		if usage := (*usageError)(nil); errors.As(err, &usage) != tt.fails || err == nil && tt.wish.ipv6 != tt.isSix {
			t.Errorf("%s: %v, IPv6 %v", tt.name, err, tt.wish.ipv6)
		}
	}
}
