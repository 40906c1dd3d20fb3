package catch

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

// examineTimeout is how long a connection from an expected source may take to send its first
// bytes. Until then, the program does not get it.
const examineTimeout = 300 * time.Millisecond

// Conn examines an accepted connection. If it is caught, Conn sends the answer, closes the
// connection and returns true. Otherwise no byte was read from the connection.
func (q *Queue) Conn(conn *net.TCPConn) (caught bool) {
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || q.IsEmpty() {
		return false
	}
	from := remote.AddrPort()
	if !q.Examines(from.Addr()) {
		return false
	}
	return q.conn(conn, from)
}

func (q *Queue) conn(conn *net.TCPConn, from netip.AddrPort) bool {
	var answer []byte
	caught := false
	_ = conn.SetReadDeadline(time.Now().Add(examineTimeout))
	err := peek(conn, func(first []byte) (enough bool) {
		var more bool
		answer, caught, more = q.Match(first, from)
		return caught || !more
	})
	_ = conn.SetReadDeadline(time.Time{})
	if err != nil && !errors.Is(err, errNotSupported) || !caught {
		return caught
	}
	reply(conn, answer)
	return caught
}

// reply sends an answer and closes the connection. It reads what the source has sent, because
// otherwise the kernel resets the connection and the source may lose the answer.
func reply(conn *net.TCPConn, answer []byte) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(examineTimeout))
	received := make([]byte, 4<<10)
	_, _ = conn.Read(received)
	if len(answer) == 0 {
		return
	}
	if _, err := conn.Write(answer); err == nil {
		_ = conn.CloseWrite()
		_, _ = conn.Read(received)
	}
}
