//go:build unix

package catch

import (
	"errors"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Supported reports whether Conn can examine connections on this system. If not, Conn leaves
// every connection to the program.
const Supported = true

// peek passes the first bytes of a connection to examine, without reading them, until examine
// returns true, MaxFirst bytes have arrived, or the read deadline is over.
func peek(conn *net.TCPConn, examine func(first []byte) (enough bool)) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var (
		first   [MaxFirst]byte
		peekErr error
	)
	err = raw.Read(func(fd uintptr) (done bool) {
		n, _, err := unix.Recvfrom(int(fd), first[:], unix.MSG_PEEK)
		for errors.Is(err, unix.EINTR) {
			n, _, err = unix.Recvfrom(int(fd), first[:], unix.MSG_PEEK)
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			peekErr = err
			return true
		case n == 0:
			peekErr = io.EOF
			return true
		}
		return examine(first[:n]) || n == len(first)
	})
	return errors.Join(err, peekErr)
}
