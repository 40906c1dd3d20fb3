//go:build unix

package catch

import (
	"errors"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

var errNotSupported = errors.ErrUnsupported

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
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
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
