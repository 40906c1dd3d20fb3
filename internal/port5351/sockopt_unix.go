//go:build unix

package port5351

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

const canBindMulticast = true

func shareAddress(fd uintptr) error {
	return errors.Join(
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
	)
}

// isRefused reports an ICMP port unreachable.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// isLost reports a datagram that this host dropped: a full buffer, or a local
// firewall.
func isLost(err error) bool {
	return errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EPERM)
}
