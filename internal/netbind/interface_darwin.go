package netbind

import (
	"net"
	"strings"

	"golang.org/x/sys/unix"
)

// ToInterface binds the socket to the interface.
func ToInterface(fd uintptr, network string, ifi *net.Interface) error {
	if strings.HasSuffix(network, "6") {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_BOUND_IF, ifi.Index)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BOUND_IF, ifi.Index)
}
