package upnp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/natforward/goforward/internal/ctxsync"
)

var actionName = regexp.MustCompile(`(?i)SOAPACTION: "[^"#]*#(\w+)"`)

// actions returns the actions of all requests that the server received, in order.
func (s *rawServer) actions() []string {
	var names []string
	for _, r := range s.received() {
		names = append(names, actionName.FindStringSubmatch(r)[1])
	}
	return names
}

// serveActions starts a server that responds to every action with success and
// without results.
func serveActions(t *testing.T) *rawServer {
	return serveRaw(t, func(conn net.Conn, _ int, request string) {
		_, _ = conn.Write([]byte(ok(soapResponse(actionName.FindStringSubmatch(request)[1], ""))))
	})
}

// enterNow enters the queue of a device and fails the test if it has to wait.
func enterNow(t *testing.T, at netip.AddrPort) (leave func()) {
	t.Helper()
	leave, err := enterQueue(t.Context(), &requestQueues, at)
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

// TestRequestOrder checks that all Clients of one address and port send their
// requests one after another: the most urgent first, and the oldest first among
// equals.
func TestRequestOrder(t *testing.T) {
	server, other := serveActions(t), serveActions(t)
	synctest.Test(t, func(t *testing.T) {
		leave := enterNow(t, server.addr)
		for _, r := range []struct {
			action   string
			priority ctxsync.Priority
		}{
			{"Check", ctxsync.Check},
			{"Renewal", ctxsync.Renewal},
			{"Delete", ctxsync.Delete},
			{"First", ctxsync.Foreground},
			{"Second", ctxsync.Foreground},
		} {
			c := server.client(t, ip1, ClientConfig{})
			go func() { _ = c.perform(ctxsync.WithPriority(t.Context(), r.priority), r.action, nil, nil) }()
			synctest.Wait()
		}
		if got := server.actions(); len(got) != 0 {
			t.Errorf("sent %v while another request is in flight", got)
		}
		if err := other.client(t, ip1, ClientConfig{}).perform(t.Context(), "Other", nil, nil); err != nil {
			t.Errorf("to another port: %v", err)
		}
		leave()
		synctest.Wait()
		if got, want := server.actions(), []string{"First", "Second", "Delete", "Renewal", "Check"}; !slices.Equal(got, want) {
			t.Errorf("order %v, want %v", got, want)
		}
	})
}

// TestCancelledInQueue checks that a request whose context ends while it waits is
// not sent, and leaves the queue.
func TestCancelledInQueue(t *testing.T) {
	server := serveActions(t)
	synctest.Test(t, func(t *testing.T) {
		leave := enterNow(t, server.addr)
		c := server.client(t, ip1, ClientConfig{})
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		ended := make(chan error, 1)
		go func() { ended <- c.perform(ctx, "GivenUp", nil, nil) }()
		synctest.Wait()
		cancel(cause)
		if err := <-ended; !errors.Is(err, cause) {
			t.Errorf("error %v, want the cause", err)
		}
		leave()
		enterNow(t, server.addr)()
		if got := server.actions(); len(got) != 0 {
			t.Errorf("sent %v", got)
		}
	})
}
