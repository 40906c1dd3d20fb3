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
	// answerTime is how long an answer may take that should come.
	replyTimeout = 5 * time.Second
	// silenceTime is how long it takes to believe that none comes. Every
	// silence costs it, so it is short; the server that could have answered
	// has just shown that it does so at once.
	noReplyTimeout = time.Second
)

// errOther says that somebody answered, but not the echo server in question.
var errOtherServer = errors.New("another server answered")

// SendTCP connects from a new source port of the host, sends the payload,
// closes its half and returns all that the peer answers until it closes.
func (h *Host) SendTCP(t testing.TB, addr netip.AddrPort, payload string) (reply string, err error) {
	t.Helper()
	return h.sendFromNewPort("tcp", addr, payload, replyTimeout)
}

// SendUDP sends one datagram from a new source port of the host and returns the
// first that comes back.
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
	h.lab.log.record("%s: sent %q to %s %s, answer %q: %s", h.name, payload, network, addr, reply, outcome(err))
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

// Reach sends random bytes to addr and returns an error unless this echo server
// sent them back; peer is the address it saw them come from.
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

// Reaches fails the test unless bytes from the wan host reach the echo server
// by the external address and come back. If they do not, it tries once more when the
// daemon is [Daemon.Settled]: on a busy machine, a connection right after a grant was
// seen to be refused. It returns the address that the server saw.
func (home *HomeNet) Reaches(t testing.TB, echo Echo, external netip.AddrPort) (peer netip.AddrPort) {
	t.Helper()
	peer, err := home.Wan.Reach(echo, external)
	if err != nil && home.Daemon.Settled() {
		t.Logf("tried again: %v", err)
		peer, err = home.Wan.Reach(echo, external)
	}
	if err != nil {
		t.Fatalf("%s does not lead to %s: %v", external, echo.Addr, err)
	}
	return peer
}

// DoesNotReach fails the test if bytes from the wan host reach the echo server
// by the external address, or if that would prove nothing because the router
// cannot reach the server either.
func (home *HomeNet) DoesNotReach(t testing.TB, echo Echo, external netip.AddrPort) {
	t.Helper()
	home.requireEcho(t, echo)
	peer, err := home.Wan.reach(echo, external, noReplyTimeout)
	if err == nil {
		t.Fatalf("%s leads to %s, which saw bytes from %s", external, echo.Addr, peer)
	}
	if !isUnreachable(err) {
		t.Fatalf("cannot tell whether %s leads to %s: %v", external, echo.Addr, err)
	}
	home.requireEcho(t, echo)
}

func (home *HomeNet) requireEcho(t testing.TB, echo Echo) {
	t.Helper()
	if _, err := home.Router.Reach(echo, echo.Addr); err != nil {
		t.Fatalf("the server inside is not there, silence would prove nothing: %v", err)
	}
}

// unreached tells what a router may do to bytes that it does not forward from a
// fault of the lab.
func isUnreachable(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		isTimeout(err) || errors.Is(err, errno.ECONNREFUSED) || errors.Is(err, errno.ECONNRESET) ||
		errors.Is(err, errno.EHOSTUNREACH) || errors.Is(err, errOtherServer)
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
