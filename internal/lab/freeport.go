package lab

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
)

// The ports of FreeUDP are below those that the kernel assigns by itself. Those from
// 10000 to 14999 are gatewaytest's, whose gateways choose addresses in the same way.
const (
	firstFree = 15000
	freePorts = 5000
)

var free atomic.Uint32

// FreeUDP returns an address of loopback where no UDP socket is bound, and which is not
// among the five thousand that it returned before. It is for a test that must know an
// address before a socket is bound there: the kernel may give a port that it chose, and
// that was closed again, to any other socket. On Linux no other process of the same PID
// namespace gets the address from this function. Elsewhere only 127.0.0.1 exists, and
// another process may get the same port. It needs no lab.
func FreeUDP(t testing.TB) netip.AddrPort {
	t.Helper()
	pid := uint32(os.Getpid()) //nolint:gosec // at most 22 bits on Linux, elsewhere any number will do
	host := netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16)&63, byte(pid >> 8), byte(pid)})
	if runtime.GOOS != "linux" {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	var last error
	for range 100 {
		at := netip.AddrPortFrom(host, uint16(firstFree+(pid*64+free.Add(1))%freePorts)) //nolint:gosec // in range
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			last = err
			continue
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		return at
	}
	t.Fatalf("no free port on loopback: %v", last)
	return netip.AddrPort{}
}
