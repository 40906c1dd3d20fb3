//go:build !unix && !windows

package netbind

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"
)

// Control fails with an error that wraps errors.ErrUnsupported. On Plan 9, package net
// ignores the Control function of a net.Dialer, so the socket could send through another
// interface without an error.
func Control(ifi *net.Interface) (func(network, address string, c syscall.RawConn) error, error) {
	return nil, fmt.Errorf("bind to interface %q on %s: %w", ifi.Name, runtime.GOOS, errors.ErrUnsupported)
}

// BindsGroup reports whether a socket can be bound to a group.
const BindsGroup = false

// Group fails with an error that wraps errors.ErrUnsupported.
func Group(_ context.Context, _ string, group netip.AddrPort, _ *net.Interface) (*net.UDPConn, error) {
	return nil, fmt.Errorf("listen at %v on %s: %w", group, runtime.GOOS, errors.ErrUnsupported)
}

// ControlTTL fails with an error that wraps errors.ErrUnsupported.
func ControlTTL(int) (func(network, address string, c syscall.RawConn) error, error) {
	return nil, fmt.Errorf("the number of hops: %w", errors.ErrUnsupported)
}
