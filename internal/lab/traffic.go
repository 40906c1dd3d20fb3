package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/errno"
)

const (
	// replyTimeout is how long to wait for a reply that should arrive.
	replyTimeout = 5 * time.Second
	// noReplyTimeout is how long to wait before a test concludes that no reply arrives.
	// Each of these checks takes this long, so it is short. The server has just shown
	// that it replies at once.
	noReplyTimeout = time.Second
)

// errOtherServer is returned if a reply is not from the expected echo server.
var errOtherServer = errors.New("another server replied")

// SendTCP connects from a new source port of the host, sends the payload, closes its side
// of the connection, and returns all bytes that the peer sends until the peer closes its
// side.
func (h *Host) SendTCP(t testing.TB, addr netip.AddrPort, payload string) (reply string, err error) {
	t.Helper()
	return h.sendFromNewPort("tcp", addr, payload, replyTimeout)
}

// SendUDP sends one datagram from a new source port of the host and returns the first
// datagram that it receives.
func (h *Host) SendUDP(t testing.TB, addr netip.AddrPort, payload string) (reply string, err error) {
	t.Helper()
	return h.sendFromNewPort("udp", addr, payload, replyTimeout)
}

func (h *Host) sendFromNewPort(network string, addr netip.AddrPort, payload string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := h.Dial(ctx, network, addr.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	reply, err := sendAndRead(ctx, conn, payload)
	h.lab.log.record("%s: sent %q to %s %s, reply %q: %s", h.name, payload, network, addr, reply, outcome(err))
	return reply, err
}

func sendAndRead(ctx context.Context, conn net.Conn, payload string) (string, error) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, payload); err != nil {
		return "", err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		buf := make([]byte, 64<<10)
		n, err := conn.Read(buf)
		return string(buf[:n]), err
	}
	if err := tcp.CloseWrite(); err != nil {
		return "", err
	}
	reply, err := io.ReadAll(conn)
	return string(reply), err
}

// Reach sends random bytes to addr. It returns an error unless this echo server returns
// them. peer is the address from which the server received them.
func (h *Host) Reach(echo Echo, addr netip.AddrPort) (peer netip.AddrPort, err error) {
	return h.reach(echo, addr, replyTimeout)
}

func (h *Host) reach(echo Echo, addr netip.AddrPort, timeout time.Duration) (netip.AddrPort, error) {
	payload := rand.Text()
	reply, err := h.sendFromNewPort(echo.Network, addr, payload, timeout)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s to %s %s: %w", h.name, echo.Network, addr, err)
	}
	head, body, _ := strings.Cut(reply, "\n")
	token, peer, _ := strings.Cut(head, " ")
	if token != echo.Token || body != payload {
		return netip.AddrPort{}, fmt.Errorf("%s to %s %s: %w: %q", h.name, echo.Network, addr, errOtherServer, reply)
	}
	return netip.ParseAddrPort(peer)
}

// Reaches fails the test unless bytes from the wan host to the external address reach the
// echo server, and the reply arrives. If the first attempt fails, Reaches tries once more
// after [Daemon.Settled] has returned true: on a busy machine, a connection right after a
// grant was once refused. It returns the address from which the server received the bytes.
func (home *HomeNet) Reaches(t testing.TB, echo Echo, external netip.AddrPort) (peer netip.AddrPort) {
	t.Helper()
	peer, err := home.Wan.Reach(echo, external)
	if err != nil && home.Daemon.Settled() {
		t.Logf("trying again: %v", err)
		peer, err = home.Wan.Reach(echo, external)
	}
	if err != nil {
		t.Fatalf("%s is not forwarded to %s: %v", external, echo.Addr, err)
	}
	return peer
}

// DoesNotReach fails the test if bytes from the wan host to the external address reach
// the echo server. It also fails if the router cannot reach the server, because then a
// missing reply proves nothing.
func (home *HomeNet) DoesNotReach(t testing.TB, echo Echo, external netip.AddrPort) {
	t.Helper()
	home.requireEcho(t, echo)
	peer, err := home.Wan.reach(echo, external, noReplyTimeout)
	if err == nil {
		t.Fatalf("%s is forwarded to %s, which received bytes from %s", external, echo.Addr, peer)
	}
	if !isUnreachable(err) {
		t.Fatalf("cannot determine whether %s is forwarded to %s: %v", external, echo.Addr, err)
	}
	home.requireEcho(t, echo)
}

func (home *HomeNet) requireEcho(t testing.TB, echo Echo) {
	t.Helper()
	if _, err := home.Router.Reach(echo, echo.Addr); err != nil {
		t.Fatalf("the router cannot reach the echo server, so a missing reply proves nothing: %v", err)
	}
}

// isUnreachable reports whether err is what a router causes if it does not forward the
// bytes, and not a failure of the lab.
func isUnreachable(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		isTimeout(err) || errors.Is(err, errno.ECONNREFUSED) || errors.Is(err, errno.ECONNRESET) ||
		errors.Is(err, errno.EHOSTUNREACH) || errors.Is(err, errOtherServer)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
