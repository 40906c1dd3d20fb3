package ssdp

import (
	"context"
	"math/bits"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/windows"
)

// bindsGroup: Windows refuses to bind a group.
const bindsGroup = false

// bindGroup makes a socket at the group's port, shared with whoever else listens
// there. only, where not nil, is the interface for what the socket sends; what it
// hears depends on where it joins.
func bindGroup(ctx context.Context, network string, group netip.AddrPort, only *net.Interface) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		return control(c, func(fd uintptr) error {
			err := windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
			if err != nil || only == nil {
				return err
			}
			return bindToInterface(fd, network, only)
		})
	}}
	local := netip.IPv4Unspecified()
	if group.Addr().Is6() {
		local = netip.IPv6Unspecified()
	}
	return bind(ctx, lc, network, netip.AddrPortFrom(local, group.Port()))
}

// The values of ws2ipdef.h.
const (
	ipUnicastIf   = 31
	ipv6UnicastIf = 31
)

// bindToInterface makes unicast leave by the interface. The IPv4 option takes the
// index in network byte order.
func bindToInterface(fd uintptr, network string, ifi *net.Interface) error {
	index := uint32(ifi.Index)
	if strings.HasSuffix(network, "6") {
		return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IPV6, ipv6UnicastIf, int(index))
	}
	return windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_IP, ipUnicastIf, int(bits.ReverseBytes32(index)))
}
