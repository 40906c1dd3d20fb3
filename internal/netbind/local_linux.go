package netbind

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// LocalAddr returns the local address that the kernel uses to reach addr. It sends no packets.
func LocalAddr(addr netip.Addr) (netip.Addr, error) {
	if addr = addr.Unmap(); !addr.Is4() {
		return dialLocalAddr(addr)
	}
	// A socket of package net costs twice as much, because it is also added to the poller.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.Addr{}, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: anyPort, Addr: addr.As4()}); err != nil {
		return netip.Addr{}, os.NewSyscallError("connect", err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return netip.Addr{}, os.NewSyscallError("getsockname", err)
	}
	local4, ok := local.(*unix.SockaddrInet4)
	if !ok {
		return netip.Addr{}, unix.EAFNOSUPPORT
	}
	return netip.AddrFrom4(local4.Addr), nil
}
