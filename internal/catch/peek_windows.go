package catch

import (
	"errors"
	"net"
	"unsafe"

	"golang.org/x/sys/windows"
)

var errNotSupported = errors.ErrUnsupported

// Values of winsock2.h.
const (
	msgPeek  = 2
	fionread = 0x4004667f
)

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
		// The socket is in blocking mode, so a read must wait until bytes have arrived.
		var available, size uint32
		if peekErr = windows.WSAIoctl(windows.Handle(fd), fionread, nil, 0, (*byte)(unsafe.Pointer(&available)), uint32(unsafe.Sizeof(available)), &size, nil, 0); peekErr != nil {
			return true
		}
		if available == 0 {
			return false
		}
		var n uint32
		flags := uint32(msgPeek)
		if peekErr = windows.WSARecv(windows.Handle(fd), &windows.WSABuf{Len: MaxFirst, Buf: &first[0]}, 1, &n, &flags, nil, nil); peekErr != nil {
			return true
		}
		return examine(first[:n]) || n == MaxFirst
	})
	return errors.Join(err, peekErr)
}
