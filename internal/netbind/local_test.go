package netbind

import (
	"net/netip"
	"testing"
)

// TestLocalAddr checks that LocalAddr returns the address that package net reports for a
// connected socket, and fails if that does.
func TestLocalAddr(t *testing.T) {
	for _, s := range []string{"127.0.0.1", "127.0.0.77", "::ffff:127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"} {
		addr := netip.MustParseAddr(s)
		want, wantErr := dialLocalAddr(addr)
		got, err := LocalAddr(addr)
		if got != want || (err == nil) != (wantErr == nil) {
			t.Errorf("%v: %v, %v; want %v, %v", addr, got, err, want, wantErr)
		}
	}
	if got, err := LocalAddr(netip.MustParseAddr("127.0.0.77")); err != nil || got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("towards another loopback address: %v, %v", got, err)
	}
}
