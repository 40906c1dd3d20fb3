//go:build unix && !solaris

package netbind

import (
	"errors"

	"golang.org/x/sys/unix"
)

// shareAddress lets others listen at the address, whichever of the two options
// they use.
func shareAddress(fd int) error {
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
	)
}
