//go:build unix

package netbind

import (
	"strings"

	"golang.org/x/sys/unix"
)

func setTTL(fd uintptr, network string, hops int) error {
	if strings.HasSuffix(network, "6") {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, hops)
}
