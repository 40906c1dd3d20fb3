package port5351

import (
	"errors"

	"golang.org/x/sys/windows"
)

// isRefused reports an ICMP port unreachable, which Windows calls a reset.
func isRefused(err error) bool {
	return errors.Is(err, windows.WSAECONNRESET) || errors.Is(err, windows.WSAECONNREFUSED)
}

// isLost reports a datagram that this host dropped.
func isLost(err error) bool { return errors.Is(err, windows.WSAENOBUFS) }
