package netbind

import (
	"net/netip"
	"os"
	"syscall"
)

// LocalAddr returns the local address that the kernel uses to reach addr. It sends no packets.
func LocalAddr(addr netip.Addr) (netip.Addr, error) {
	if addr = addr.Unmap(); !addr.Is4() {
		return dialLocalAddr(addr)
	}
	// A socket of package net costs twice as much, because it is also added to the poller. The
	// Getsockname of package unix makes a second system call.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.Addr{}, os.NewSyscallError("socket", err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: anyPort, Addr: addr.As4()}); err != nil {
		return netip.Addr{}, os.NewSyscallError("connect", err)
	}
	local, err := syscall.Getsockname(fd)
	if err != nil {
		return netip.Addr{}, os.NewSyscallError("getsockname", err)
	}
	local4, ok := local.(*syscall.SockaddrInet4)
	if !ok {
		return netip.Addr{}, syscall.EAFNOSUPPORT
	}
	return netip.AddrFrom4(local4.Addr), nil
}
