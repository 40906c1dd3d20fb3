package forward

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/natforward/goforward/internal/catch"
)

// maxExamined is the number of connections that are examined at once. The program gets the others
// unexamined.
const maxExamined = 32

// accepter accepts connections, and keeps those of probers from the program. Each connection from
// an expected source is examined on a goroutine of its own, so that others do not wait for it.
// While nothing is expected, it only calls the listener.
type accepter struct {
	listener *net.TCPListener
	queue    *catch.Queue
	ctx      context.Context //nolint:containedctx // ends with close
	cancel   context.CancelFunc

	mu         sync.Mutex
	deadline   time.Time      // what the program set; zero: none
	passed     []*net.TCPConn // examined connections for the program
	interrupts int            // how often pass has interrupted the listener
	running    int            // the number of connections that are examined now
	skipped    int            // connections that the program got unexamined
	closed     bool
	work       sync.WaitGroup
}

// newAccepter returns an accepter. The caller must close it after the listener.
func newAccepter(listener *net.TCPListener, queue *catch.Queue) *accepter {
	a := &accepter{listener: listener, queue: queue}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// accept returns the next connection for the program.
func (a *accepter) accept() (*net.TCPConn, error) {
	for {
		conn, interrupts := a.takePassed()
		if conn != nil {
			return conn, nil
		}
		conn, err := a.listener.AcceptTCP()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && a.wasInterrupted(interrupts):
			continue // not the deadline of the program; or else the next call fails too
		case err != nil:
			return nil, err
		case a.queue.IsEmpty() || !a.examine(conn):
			return conn, nil
		}
	}
}

// takePassed returns an examined connection, or nil, and the number of interrupts so far. When
// there is no connection left, the listener obeys the deadline of the program again.
func (a *accepter) takePassed() (conn *net.TCPConn, interrupts int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.passed) == 0 {
		return nil, a.interrupts
	}
	conn = a.passed[0]
	if a.passed = a.passed[1:]; len(a.passed) == 0 {
		_ = a.listener.SetDeadline(a.deadline) // fails only if the listener is closed
	}
	return conn, a.interrupts
}

// wasInterrupted reports whether pass has interrupted the listener since takePassed returned this
// number.
func (a *accepter) wasInterrupted(since int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.interrupts != since
}

// setDeadline sets the deadline of the program.
func (a *accepter) setDeadline(t time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deadline = t
	if len(a.passed) > 0 {
		return nil // the listener is being interrupted
	}
	return a.listener.SetDeadline(t)
}

// examine begins to examine a connection. It returns false if that is not necessary.
func (a *accepter) examine(conn *net.TCPConn) bool {
	if !a.queue.Examines(tcpEndpoint(conn.RemoteAddr()).Addr()) || !a.reserve() {
		return false
	}
	go func() {
		defer a.work.Done()
		a.finish(conn, a.queue.Conn(a.ctx, conn))
	}()
	return true
}

// reserve reports whether one more connection may be examined. The caller must then call finish, and
// work.Done after it.
func (a *accepter) reserve() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return false
	case a.running >= maxExamined:
		a.skipped++
		return false
	}
	a.running++
	a.work.Add(1)
	return true
}

// finish gives an examined connection to the program, unless it was caught, and interrupts the
// accept that waits.
func (a *accepter) finish(conn *net.TCPConn, caught bool) {
	a.mu.Lock()
	a.running--
	closed := a.closed
	if !closed && !caught {
		a.passed = append(a.passed, conn)
		a.interrupts++
		_ = a.listener.SetDeadline(time.Unix(1, 0))
	}
	a.mu.Unlock()
	if closed {
		_ = conn.Close()
	}
}

// skippedCount returns how many connections the program got unexamined. A UDP socket has no
// accepter, and skips none.
func (a *accepter) skippedCount() int {
	if a == nil {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.skipped
}

// close closes the connections that the program has not accepted. The listener is closed already.
func (a *accepter) close() {
	a.mu.Lock()
	a.closed = true
	passed := a.passed
	a.passed = nil
	a.mu.Unlock()
	a.cancel()
	for _, conn := range passed {
		_ = conn.Close()
	}
	a.work.Wait()
}
