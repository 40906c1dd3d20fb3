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

// fakeGateway is a gateway in memory. It records what is sent to it.
type fakeGateway struct {
	mu      sync.Mutex
	sent    []transmission
	sockets []*fakeSocket
	started time.Time
	// onWrite answers or refuses a transmission. If it is nil, the gateway does not
	// reply.
	onWrite func(s *fakeSocket, datagram []byte) error
	dialErr error
}

type transmission struct {
	at       time.Duration // since the gateway was started
	datagram string
}

// fakeSocket is one connected socket.
type fakeSocket struct {
	incoming chan any // []byte or error
	closed   chan struct{}
	once     sync.Once
	gateway  *fakeGateway
}

// newConn makes a gateway and a Conn to it.
func newConn(t *testing.T, gateway string) (*fakeGateway, *Conn) {
	t.Helper()
	gw := &fakeGateway{started: time.Now()}
	return gw, gw.open(t, Config{Gateway: netip.MustParseAddrPort(gateway)})
}

func (gw *fakeGateway) open(t *testing.T, config Config) *Conn {
	t.Helper()
	conn, err := open(config, gw.dial)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (gw *fakeGateway) dial(context.Context, Config) (net.Conn, error) {
	gw.mu.Lock()
	defer gw.mu.Unlock()
	if gw.dialErr != nil {
		return nil, gw.dialErr
	}
	s := &fakeSocket{incoming: make(chan any, 16), closed: make(chan struct{}), gateway: gw}
	gw.sockets = append(gw.sockets, s)
	return s, nil
}

// transmissions returns the datagrams that were sent.
func (gw *fakeGateway) transmissions() []transmission {
	gw.mu.Lock()
	defer gw.mu.Unlock()
	return append([]transmission(nil), gw.sent...)
}

func (s *fakeSocket) Write(b []byte) (int, error) {
	s.gateway.mu.Lock()
	s.gateway.sent = append(s.gateway.sent, transmission{time.Since(s.gateway.started), string(b)})
	onWrite := s.gateway.onWrite
	s.gateway.mu.Unlock()
	if onWrite != nil {
		if err := onWrite(s, b); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// receive makes Read return a datagram of the gateway, or an error.
func (s *fakeSocket) receive(item any) { s.incoming <- item }

func (s *fakeSocket) Read(b []byte) (int, error) {
	select {
	case item := <-s.incoming:
		if err, ok := item.(error); ok {
			return 0, err
		}
		return copy(b, item.([]byte)), nil
	case <-s.closed:
		return 0, net.ErrClosed
	}
}

func (s *fakeSocket) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *fakeSocket) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.10:40000"))
}
func (s *fakeSocket) RemoteAddr() net.Addr             { return nil }
func (s *fakeSocket) SetDeadline(time.Time) error      { return nil }
func (s *fakeSocket) SetReadDeadline(time.Time) error  { return nil }
func (s *fakeSocket) SetWriteDeadline(time.Time) error { return nil }

// echo returns a transaction whose reply is equal to its request.
func echo(request string, waits ...time.Duration) Transaction {
	return Transaction{
		Request: []byte(request),
		Match: func(b []byte) Match {
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
