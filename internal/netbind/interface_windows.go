package netbind

import (
	"math/bits"
	"net"
	"strings"

	"golang.org/x/sys/windows"
)

// Values from ws2ipdef.h.
const (
	ipUnicastIf   = 31
	ipv6UnicastIf = 31
)

// ToInterface makes the socket send unicast through the interface. The IPv4 option takes
// the index in network byte order.
func ToInterface(fd uintptr, network string, ifi *net.Interface) error {
	index := uint32(ifi.Index)
	if strings.HasSuffix(network, "6") {
		return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IPV6, ipv6UnicastIf, int(index))
	}
	return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IP, ipUnicastIf, int(bits.ReverseBytes32(index)))
}
