package port5351

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire is a gateway in memory: what is sent to it, and what it says.
type wire struct {
	mu    sync.Mutex
	sent  []transmission
	socks []*sock
	begun time.Time
	// onWrite answers or refuses a transmission; nil is silence.
	onWrite func(s *sock, datagram []byte) error
	dialErr error
}

type transmission struct {
	at       time.Duration // since the wire was made
	datagram string
}

// sock is one connected socket.
type sock struct {
	in     chan any // []byte or error
	closed chan struct{}
	once   sync.Once
	wire   *wire
}

// newLink makes a wire and a link on it.
func newLink(t *testing.T, gateway string) (*wire, *Conn) {
	t.Helper()
	w := &wire{begun: time.Now()}
	return w, w.link(t, Config{Gateway: netip.MustParseAddrPort(gateway)})
}

func (w *wire) link(t *testing.T, c Config) *Conn {
	t.Helper()
	l, err := open(c, w.dial)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *wire) dial(context.Context, Config) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dialErr != nil {
		return nil, w.dialErr
	}
	s := &sock{in: make(chan any, 16), closed: make(chan struct{}), wire: w}
	w.socks = append(w.socks, s)
	return s, nil
}

// log returns what was sent.
func (w *wire) log() []transmission {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]transmission(nil), w.sent...)
}

func (s *sock) Write(b []byte) (int, error) {
	s.wire.mu.Lock()
	s.wire.sent = append(s.wire.sent, transmission{time.Since(s.wire.begun), string(b)})
	onWrite := s.wire.onWrite
	s.wire.mu.Unlock()
	if onWrite != nil {
		if err := onWrite(s, b); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// say lets the gateway send a datagram, or the kernel report an error.
func (s *sock) say(what any) { s.in <- what }

func (s *sock) Read(b []byte) (int, error) {
	select {
	case what := <-s.in:
		if err, ok := what.(error); ok {
			return 0, err
		}
		return copy(b, what.([]byte)), nil
	case <-s.closed:
		return 0, net.ErrClosed
	}
}

func (s *sock) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *sock) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.10:40000"))
}
func (s *sock) RemoteAddr() net.Addr             { return nil }
func (s *sock) SetDeadline(time.Time) error      { return nil }
func (s *sock) SetReadDeadline(time.Time) error  { return nil }
func (s *sock) SetWriteDeadline(time.Time) error { return nil }

// echoes is an exchange that its own request answers.
func echoes(request string, waits ...time.Duration) Transaction {
	return Transaction{
		Request: []byte(request),
		Answers: func(b []byte) Match {
			if string(b) == request {
				return Exact
			}
			return None
		},
		Wait: func(n int) (time.Duration, bool) {
			if n >= len(waits) {
				return 0, false
			}
			return waits[n], true
		},
	}
}
