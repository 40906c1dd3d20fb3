//go:build unix

package netbind

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// BindsGroup reports whether a socket can be bound to a group. Such a socket does not
// receive datagrams to other addresses.
const BindsGroup = true

// Group opens a socket that is bound to the address of the group, and shares the address
// with other listeners. A link-local IPv6 group must have a zone. If only is not nil, the
// socket receives only datagrams that arrive on that interface.
//
// Group does not use package net, which binds all addresses instead of the group. Such a
// socket would take unicast datagrams from other programs that listen on the port.
func Group(_ context.Context, network string, group netip.AddrPort, only *net.Interface) (*net.UDPConn, error) {
	addr, err := sockaddr(group)
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if group.Addr().Is6() {
		family = unix.AF_INET6
	}
	syscall.ForkLock.RLock() // so that a program that is started meanwhile does not inherit the socket
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "group")
	defer f.Close() // the connection has a copy of the descriptor
	err = shareAddress(fd)
	if err == nil && family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && only != nil {
		err = ToInterface(uintptr(fd), network, only)
	}
	if err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, addr); err != nil {
		return nil, fmt.Errorf("listen at %v: %w", group, os.NewSyscallError("bind", err))
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	return asUDP(conn)
}

func sockaddr(a netip.AddrPort) (unix.Sockaddr, error) {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}, nil
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		ifi, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, fmt.Errorf("interface %q: %w", zone, err)
		}
		sa.ZoneId = uint32(ifi.Index)
	}
	return sa, nil
}
