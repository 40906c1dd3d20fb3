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

// actions returns the actions that the server was asked for, in their order.
func (s *rawServer) actions() []string {
	var names []string
	for _, r := range s.received() {
		names = append(names, actionName.FindStringSubmatch(r)[1])
	}
	return names
}

// serveActions starts a server that knows all actions, and has no results for them.
func serveActions(t *testing.T) *rawServer {
	return serveRaw(t, func(conn net.Conn, _ int, request string) {
		_, _ = conn.Write([]byte(ok(soapResponse(actionName.FindStringSubmatch(request)[1], ""))))
	})
}

// enterNow takes a turn for which nothing has to be waited for.
func enterNow(t *testing.T, at netip.AddrPort) (leave func()) {
	t.Helper()
	leave, err := enterQueue(t.Context(), &requestQueues, at)
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

// All Clients of one address and port send their requests one after another: the most
// urgent first, and the oldest first among equals.
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
			t.Errorf("asked for %v while another request has the turn", got)
		}
		if err := other.client(t, ip1, ClientConfig{}).perform(t.Context(), "Other", nil, nil); err != nil {
			t.Errorf("at another port: %v", err)
		}
		leave()
		synctest.Wait()
		if got, want := server.actions(), []string{"First", "Second", "Delete", "Renewal", "Check"}; !slices.Equal(got, want) {
			t.Errorf("order %v, want %v", got, want)
		}
	})
}

// A request whose context ends while it waits is not sent, and leaves the queue.
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
			t.Errorf("asked for %v", got)
		}
	})
}
