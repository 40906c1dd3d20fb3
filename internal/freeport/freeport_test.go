package freeport_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/natforward/goforward/internal/freeport"
)

// TestUDP checks that the addresses differ, and that all of them can be bound at once.
func TestUDP(t *testing.T) {
	seen := map[netip.AddrPort]bool{}
	for range 100 {
		at, err := freeport.UDP()
		if err != nil {
			t.Fatal(err)
		}
		if seen[at] || !at.Addr().IsLoopback() {
			t.Errorf("%v", at)
		}
		seen[at] = true
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
}
