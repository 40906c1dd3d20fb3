package cli

import (
	"errors"
	"net/netip"
	"testing"
)

// TestSetFamily checks that all addresses must be of one family, and that this family selects
// the gateway.
func TestSetFamily(t *testing.T) {
	t.Parallel()
	ipv4, ipv6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	endpoint := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }
	for _, tt := range []struct {
		name            string
		spec            spec
		settings        settings
		wantIPv6, fails bool
	}{
		{name: "no address"},
		{name: "only -6", spec: spec{ipv6: true}, wantIPv6: true},
		{name: "a gateway", settings: settings{gateway: endpoint(ipv6)}, wantIPv6: true},
		{name: "a source", settings: settings{source: ipv6}, wantIPv6: true},
		{name: "a peer", spec: spec{from: endpoint(ipv6)}, wantIPv6: true},
		{name: "another host", spec: spec{to: ipv6}, wantIPv6: true},
		{name: "only IPv4 addresses", spec: spec{to: ipv4, from: endpoint(ipv4)}, settings: settings{gateway: endpoint(ipv4), source: ipv4}},
		{name: "-6 and a gateway", spec: spec{ipv6: true}, settings: settings{gateway: endpoint(ipv4)}, fails: true},
		{name: "a device", settings: settings{igd: "http://[2001:db8::1]:5000/"}, wantIPv6: true},
		{name: "-6 and a device", spec: spec{ipv6: true}, settings: settings{igd: "http://192.0.2.1:5000/"}, wantIPv6: true},
		{name: "-6 and a source", spec: spec{ipv6: true}, settings: settings{source: ipv4}, fails: true},
		{name: "-6 and another host", spec: spec{ipv6: true, to: ipv4}, fails: true},
		{name: "-6 and a peer", spec: spec{ipv6: true, from: endpoint(ipv4)}, fails: true},
		{name: "a peer and another host", spec: spec{to: ipv4, from: endpoint(ipv6)}, fails: true},
		{name: "a gateway and a peer", spec: spec{from: endpoint(ipv4)}, settings: settings{gateway: endpoint(ipv6)}, fails: true},
	} {
		err := (&app{settings: tt.settings}).setFamily(&tt.spec)
		if usage := (*usageError)(nil); errors.As(err, &usage) != tt.fails || err == nil && tt.spec.ipv6 != tt.wantIPv6 {
			t.Errorf("%s: error %v, IPv6 %v, want IPv6 %v", tt.name, err, tt.spec.ipv6, tt.wantIPv6)
		}
	}
}
