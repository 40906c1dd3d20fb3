package catch

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"
	"unsafe"
)

// Supported reports whether Conn can examine connections on this system. If not, Conn leaves
// every connection to the program.
const Supported = true

// Values of winsock2.h.
const (
	msgPeek  = 2
	fionread = 0x4004667f
)

// moreInterval is how often peek looks for more bytes. Windows reports only that there are
// some.
const moreInterval = 5 * time.Millisecond

// peek passes the first bytes of a connection to examine, without reading them, until examine
// returns true, MaxFirst bytes have arrived, or the read deadline is over.
func peek(conn *net.TCPConn, examine func(first []byte) (enough bool)) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var (
		first   [MaxFirst]byte
		waited  bool
		peekErr error
	)
	err = raw.Read(func(fd uintptr) (done bool) {
		s := syscall.Handle(fd)
		// The socket is in blocking mode, so it must not read until bytes have arrived.
		var available, n, flags uint32 = 0, 0, msgPeek
		if peekErr = syscall.WSAIoctl(s, fionread, nil, 0, (*byte)(unsafe.Pointer(&available)), uint32(unsafe.Sizeof(available)), &n, nil, 0); peekErr != nil {
			return true
		}
		if available == 0 {
			if waited { // raw.Read has waited for a byte, and there is none
				peekErr = io.EOF
			}
			waited = true
			return peekErr != nil
		}
		if peekErr = syscall.WSARecv(s, &syscall.WSABuf{Len: MaxFirst, Buf: &first[0]}, 1, &n, &flags, nil, nil); peekErr != nil {
			return true
		}
		if examine(first[:n]) || n == MaxFirst {
			return true
		}
		time.Sleep(moreInterval)
		return false
	})
	return errors.Join(err, peekErr)
}
