package netbind

import (
	"strings"

	"golang.org/x/sys/windows"
)

// ipv6UnicastHops is IPV6_UNICAST_HOPS of ws2ipdef.h.
const ipv6UnicastHops = 4

func setTTL(fd uintptr, network string, hops int) error {
	if strings.HasSuffix(network, "6") {
		return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IPV6, ipv6UnicastHops, hops)
	}
	return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IP, windows.IP_TTL, hops)
}
