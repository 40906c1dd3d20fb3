package lab_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// The addresses differ, and each can be bound, also while all others are.
func TestFreeUDP(t *testing.T) {
	seen := map[netip.AddrPort]bool{}
	for range 100 {
		at := lab.FreeUDP(t)
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
