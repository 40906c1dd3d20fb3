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

// Control fails. Package net on Plan 9 ignores the Control function of a net.Dialer, and
// so would not leave by the interface, without an error.
func Control(ifi *net.Interface) (func(network, address string, c syscall.RawConn) error, error) {
	return nil, fmt.Errorf("leave by interface %q on %s: %w", ifi.Name, runtime.GOOS, errors.ErrUnsupported)
}

// BindsGroup says whether a socket can be bound to a group.
const BindsGroup = false

// Group fails.
func Group(_ context.Context, _ string, group netip.AddrPort, _ *net.Interface) (*net.UDPConn, error) {
	return nil, fmt.Errorf("listen at %v on %s: %w", group, runtime.GOOS, errors.ErrUnsupported)
}
