package gatewaytest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
)

// A gateway announces to an address that it knows before the listener binds it. A port
// that the kernel chose and that was closed again is not safe: until the listener binds
// it, the kernel may give the port to any socket that asks for a free one. So the ports
// are below those that the kernel assigns by itself, which begin at 32768 (Linux) or
// 49152 (macOS, Windows). Those above 15000 are internal/lab's, which does the same in
// tests that have no gateway.
const (
	firstSpare = 10000
	spares     = 5000
)

var spare atomic.Uint32

// spareUDP returns an address of loopback where no UDP socket is bound, and which is not
// among the five thousand that it returned before. The kernel assigns the port to no
// other socket. On Linux the address contains the process ID, so no other process of the
// same PID namespace gets it from this function. Elsewhere only 127.0.0.1 exists, and
// another process may get the same port.
func spareUDP() (netip.AddrPort, error) {
	var last error
	for range 100 {
		at := netip.AddrPortFrom(spareHost(os.Getpid()), firstSpare+sparePort(os.Getpid(), spare.Add(1)))
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			last = err
			continue
		}
		return at, conn.Close()
	}
	return netip.AddrPort{}, fmt.Errorf("gatewaytest: no free port on loopback: %w", last)
}

// spareHost is an address of loopback that differs between processes. Linux has process
// IDs of at most 22 bits.
func spareHost(pid int) netip.Addr {
	if runtime.GOOS != "linux" {
		return loopback
	}
	return netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16)&63, byte(pid >> 8), byte(pid)})
}

// sparePort differs between the calls of a process. Processes begin at different ports,
// so that they rarely try the same one if they share an address.
func sparePort(pid int, call uint32) uint16 {
	return uint16((uint32(pid)*64 + call) % spares) //nolint:gosec // in range
}
