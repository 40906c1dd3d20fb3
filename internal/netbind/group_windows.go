package netbind

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/windows"
)

// BindsGroup says whether a socket can be bound to a group. Windows refuses.
const BindsGroup = false

// Group makes a socket at the group's port, shared with whoever else listens
// there. only, where not nil, is the interface for what the socket sends; what it
// hears depends on where it joins.
func Group(ctx context.Context, network string, group netip.AddrPort, only *net.Interface) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		return control(c, func(fd uintptr) error {
			err := windows.SetsockoptInt(windows.Handle(fd), windows.SOL_SOCKET, windows.SO_REUSEADDR, 1)
			if err != nil || only == nil {
				return err
			}
			return ToInterface(fd, network, only)
		})
	}}
	local := netip.IPv4Unspecified()
	if group.Addr().Is6() {
		local = netip.IPv6Unspecified()
	}
	conn, err := lc.ListenPacket(ctx, network, netip.AddrPortFrom(local, group.Port()).String())
	if err != nil {
		return nil, err
	}
	return asUDP(conn)
}
