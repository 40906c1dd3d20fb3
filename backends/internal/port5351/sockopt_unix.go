//go:build unix

package port5351

import (
	"errors"
	"syscall"
)

// isRefused reports an ICMP port unreachable.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// isLost reports a datagram that this host dropped: a full buffer, or a local
// firewall.
func isLost(err error) bool {
	return errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EPERM)
}
