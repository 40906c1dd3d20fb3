package netbind

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/windows"
)

// BindsGroup reports whether a socket can be bound to a group. Windows does not allow it.
const BindsGroup = false

// Group opens a socket that is bound to the port of the group, and shares the port with
// other listeners. If only is not nil, the socket sends through that interface. The
// interfaces on which it receives depend on the groups that it joins.
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
