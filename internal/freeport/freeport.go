// Package freeport finds addresses of loopback where a socket can be bound later.
//
// A test router announces to an address that must be known before the listener
// binds it. A port that the kernel chose and that was closed again is not safe:
// until the listener binds it, the kernel may give the port to any socket that
// asks for a free one.
package freeport

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
)

// The ports are below those that the kernel assigns by itself: they begin at 32768
// (Linux) or 49152 (macOS, Windows).
const (
	firstPort = 10000
	ports     = 10000
)

var used atomic.Uint32

// UDP returns an address where no UDP socket is bound, and which is not among the
// ten thousand that it returned before. The kernel assigns the port to no other
// socket. On Linux the address contains the process ID, so no other process of the
// same PID namespace gets it from this function. Elsewhere only 127.0.0.1 exists, and
// another process may get the same port.
func UDP() (netip.AddrPort, error) {
	var last error
	for range 100 {
		at := netip.AddrPortFrom(host(os.Getpid()), firstPort+port(os.Getpid(), used.Add(1)))
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			last = err
			continue
		}
		return at, conn.Close()
	}
	return netip.AddrPort{}, fmt.Errorf("no free port on loopback: %w", last)
}

// host is an address of loopback that differs between processes. Linux has process
// IDs of at most 22 bits.
func host(pid int) netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16)&63, byte(pid >> 8), byte(pid)})
}

// port differs between the calls of a process. Processes begin at different ports,
// so that they rarely try the same one where they share an address.
func port(pid int, call uint32) uint16 {
	return uint16((uint32(pid)*64 + call) % ports) //nolint:gosec // in range
}
