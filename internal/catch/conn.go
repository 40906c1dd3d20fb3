package catch

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/netip"
	"time"
)

// examineTimeout is how long a connection from an expected source may take to send its first
// bytes. Until then, the program does not get it.
const examineTimeout = 300 * time.Millisecond

// Conn examines an accepted connection. If it is caught, Conn sends the answer, closes the
// connection and returns true. Otherwise no byte was read from the connection, and it has no
// read deadline if its source was expected. If the peer reset the connection, the program may
// see the end of the stream instead. The end of ctx ends the examination, but not the answer.
func (q *Queue) Conn(ctx context.Context, conn *net.TCPConn) (caught bool) {
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !q.Examines(remote.AddrPort().Addr()) {
		return false
	}
	return q.examine(ctx, conn, remote.AddrPort())
}

func (q *Queue) examine(ctx context.Context, conn *net.TCPConn, from netip.AddrPort) (caught bool) {
	var answer []byte
	timeout := cmp.Or(q.Timeout, examineTimeout)
	_ = conn.SetReadDeadline(time.Now().Add(timeout))
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	_ = peek(conn, func(first []byte) (enough bool) {
		var mayMatch bool
		answer, caught, mayMatch = q.Match(first, from)
		return caught || !mayMatch
	})
	if !stop() {
		<-interrupted
	}
	_ = conn.SetReadDeadline(time.Time{})
	if caught {
		reply(conn, answer, timeout)
	}
	return caught
}

// reply sends an answer and closes the connection. Before that, it reads what the source sends:
// otherwise the kernel resets the connection, and the source may lose the answer.
func reply(conn *net.TCPConn, answer []byte, timeout time.Duration) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	if _, err := conn.Write(answer); err != nil {
		return
	}
	_ = conn.CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
}
