// Package freeport finds loopback addresses to which a test can bind a socket later.
//
// A test router sends announcements to an address that must be known before the listener
// binds it. It is not safe to let the kernel choose a port and then to close the socket:
// until the listener binds the port, the kernel may assign it to any socket that requests
// a free port.
package freeport

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
)

// The range of the ports. It is below the ports that the kernel assigns: those begin at
// 32768 (Linux) or 49152 (macOS, Windows).
const (
	firstPort = 10000
	ports     = 10000
)

var attempts atomic.Uint32 // number of addresses that UDP has tried in this process

// UDP returns an address to which no UDP socket is bound. The address differs from the 9999
// addresses that UDP tried before. The kernel does not assign the port to any other socket.
// On Linux, the address contains the process ID, so UDP returns another address in every
// other process of the same PID namespace. On other systems, UDP uses only 127.0.0.1, and
// another process may get the same port.
func UDP() (netip.AddrPort, error) {
	var lastErr error
	for range 100 {
		at := netip.AddrPortFrom(host(os.Getpid()), firstPort+port(os.Getpid(), attempts.Add(1)))
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			lastErr = err
			continue
		}
		return at, conn.Close()
	}
	return netip.AddrPort{}, fmt.Errorf("no free port on loopback: %w", lastErr)
}

// host returns a loopback address that differs between processes on Linux, where process
// IDs have at most 22 bits. On other systems it is 127.0.0.1.
func host(pid int) netip.Addr {
	if runtime.GOOS != "linux" {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16)&63, byte(pid >> 8), byte(pid)})
}

// port returns a port, relative to firstPort, that differs between the attempts of a process.
// Processes start at different ports, so that they rarely try the same port if they share an
// address.
func port(pid int, attempt uint32) uint16 {
	return uint16((uint32(pid)*64 + attempt) % ports) //nolint:gosec // in range
}
