package port5351

import (
	"errors"
	"math/bits"
	"net"
	"strings"

	"golang.org/x/sys/windows"
)

// Windows refuses to bind a multicast address.
const canBindMulticast = false

func shareAddress(fd uintptr) error {
	return windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
}

// The values of ws2ipdef.h.
const (
	ipUnicastIf   = 31
	ipv6UnicastIf = 31
)

// bindToInterface makes the socket leave by the interface. The IPv4 option
// takes the index in network byte order.
func bindToInterface(fd uintptr, network string, ifi *net.Interface) error {
	index := uint32(ifi.Index)
	if strings.HasSuffix(network, "6") {
		return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IPV6, ipv6UnicastIf, int(index))
	}
	return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IP, ipUnicastIf, int(bits.ReverseBytes32(index)))
}

// isRefused reports an ICMP port unreachable, which Windows calls a reset.
func isRefused(err error) bool {
	return errors.Is(err, windows.WSAECONNRESET) || errors.Is(err, windows.WSAECONNREFUSED)
}

// isLost reports a datagram that this host dropped.
func isLost(err error) bool { return errors.Is(err, windows.WSAENOBUFS) }
