package backends

import (
	"net/netip"
	"testing"
)

func TestScopeOf(t *testing.T) {
	for addr, want := range map[string]string{
		"45.45.45.1": "public", "8.8.8.8": "public", "2606:4700::1": "public", "::ffff:8.8.8.8": "public",
		"10.1.2.3": "private", "172.16.0.1": "private", "192.168.1.1": "private", "169.254.1.1": "private",
		"127.0.0.1": "private", "203.0.113.7": "private", "192.0.0.9": "private", "240.0.0.1": "private",
		"224.0.0.1": "private", "fd00::1": "private", "fe80::1": "private", "2001:db8::1": "private", "::1": "private",
		"100.64.0.1": "shared", "100.127.255.254": "shared", "100.128.0.1": "public", "100.63.255.255": "public",
		"0.0.0.0": "unknown", "::": "unknown",
	} {
		if got := ScopeOf(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
	}
	if got := ScopeOf(netip.Addr{}); got != ScopeUnknown {
		t.Errorf("the zero Addr is %v", got)
	}
}
