package netbind

import "golang.org/x/sys/unix"

// shareAddress lets others listen at the address who use the same option. Package unix
// has no SO_REUSEPORT of Solaris and illumos.
func shareAddress(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}
