package ssdp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/internal/errno"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func equal(t *testing.T, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// crlf replaces the line ends by CRLF, as SSDP uses them.
func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// fakeConn is a socket in memory, for tests in a synctest bubble.
type fakeConn struct {
	config socketConfig
	in     chan datagram
	closed chan struct{}
	onSend func(*fakeConn, datagram) error

	mu    sync.Mutex
	start time.Time
	sent  []string // each "time destination target"
}

type datagram struct {
	text string
	addr netip.AddrPort
}

func (c *fakeConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case d := <-c.in:
		if d.text == "" {
			return 0, netip.AddrPort{}, errno.ECONNREFUSED
		}
		return copy(b, d.text), d.addr, nil
	case <-c.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (c *fakeConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	_, target, _ := strings.Cut(string(b), "\nST: ")
	c.mu.Lock()
	c.sent = append(c.sent, fmt.Sprint(time.Since(c.start), " ", to, " ", strings.TrimSpace(target)))
	c.mu.Unlock()
	if c.onSend != nil {
		return len(b), c.onSend(c, datagram{string(b), to})
	}
	return len(b), nil
}

func (c *fakeConn) Close() error {
	close(c.closed) // panics if Close is called twice
	return nil
}

// fakeNetwork opens fake sockets, and records them in order.
type fakeNetwork struct {
	conns  []*fakeConn
	onSend func(*fakeConn, datagram) error
	refuse map[string]error // errors of open, by network
}

func (n *fakeNetwork) open(_ context.Context, s socketConfig) (packetConn, error) {
	if err := n.refuse[s.network]; err != nil {
		return nil, err
	}
	c := &fakeConn{
		config: s, in: make(chan datagram, 1000), closed: make(chan struct{}),
		onSend: n.onSend, start: time.Now(),
	}
	n.conns = append(n.conns, c)
	return c, nil
}

func (n *fakeNetwork) checkClosed(t *testing.T) {
	t.Helper()
	for _, c := range n.conns {
		select {
		case <-c.closed:
		default:
			t.Errorf("the %s socket is still open", c.config.network)
		}
	}
}

var (
	gateway  = netip.MustParseAddrPort("192.168.1.1:1900")
	gateway6 = netip.MustParseAddrPort("[2001:db8::1]:1900")
)

// responseText is a response with the given location and a fixed device name.
func responseText(location string) string {
	return crlf("HTTP/1.1 200 OK\nLOCATION: " + location + "\nUSN: uuid:1::x\n\n")
}

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.IPv6Loopback()
)

// device opens a socket on loopback, and returns it with its address.
func device(t *testing.T, addr netip.Addr) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, addrOf(t, conn)
}

func addrOf(t *testing.T, conn *net.UDPConn) netip.AddrPort {
	t.Helper()
	udp, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		t.Fatalf("local address %v", conn.LocalAddr())
	}
	return udp.AddrPort()
}

// serveDevice calls respond for each search until the socket is closed.
func serveDevice(conn *net.UDPConn, respond func(search string, from netip.AddrPort)) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		respond(string(buf[:n]), from)
	}
}

// testContext limits the duration of a test that could otherwise block forever.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
