package gatewaytest

import (
	"net"
	"net/netip"
	"os"
	"sync/atomic"
)

// The ports that a gateway chooses are below those that systems assign by
// themselves: they begin at 32768 (Linux) or 49152 (macOS, Windows). Otherwise the
// kernel may give the port of a gateway that is down to any socket that asks for a
// free one. Processes choose from different blocks, where they can.
const (
	firstPort     = 20000
	blocks        = 10
	portsPerBlock = 1000
)

var chosen atomic.Uint32

// choose makes a socket at an address. If its port is 0, it tries ports that
// systems do not assign, and then any.
func choose[T any](at netip.AddrPort, listen func(netip.AddrPort) (T, error)) (T, error) {
	const tries = 50
	if at.Port() == 0 {
		for range tries {
			pid := uint32(os.Getpid()) //nolint:gosec // any number will do
			n := pid%blocks*portsPerBlock + (pid/blocks+chosen.Add(1))%portsPerBlock
			if socket, err := listen(netip.AddrPortFrom(at.Addr(), uint16(firstPort+n))); err == nil { //nolint:gosec // in range
				return socket, nil
			}
		}
	}
	return listen(at)
}

func listenUDP(network string, at netip.AddrPort) (*net.UDPConn, error) {
	return choose(at, func(at netip.AddrPort) (*net.UDPConn, error) {
		return net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	})
}

func listenTCP(network string, at netip.AddrPort) (*net.TCPListener, error) {
	return choose(at, func(at netip.AddrPort) (*net.TCPListener, error) {
		return net.ListenTCP(network, net.TCPAddrFromAddrPort(at))
	})
}
