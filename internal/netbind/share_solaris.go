package netbind

import "golang.org/x/sys/unix"

// shareAddress allows other sockets with the same option to listen at the address. Package
// unix does not define SO_REUSEPORT for Solaris and illumos.
func shareAddress(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}
