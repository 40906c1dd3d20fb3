//go:build unix && !solaris

package netbind

import (
	"errors"

	"golang.org/x/sys/unix"
)

// shareAddress allows other sockets with either of the two options to listen at the
// address.
func shareAddress(fd int) error {
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
	)
}
