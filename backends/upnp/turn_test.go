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
	for _, r := range s.all() {
		names = append(names, actionName.FindStringSubmatch(r)[1])
	}
	return names
}

// serveActions starts a server that knows all actions, and has no results for them.
func serveActions(t *testing.T) *rawServer {
	return serveRaw(t, func(conn net.Conn, _ int, request string) {
		_, _ = conn.Write([]byte(ok(said(actionName.FindStringSubmatch(request)[1], ""))))
	})
}

// takeNow takes a turn for which nothing has to be waited for.
func takeNow(t *testing.T, at netip.AddrPort) (end func()) {
	t.Helper()
	end, err := takeTurn(t.Context(), &hosts, at)
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// All Clients of one address and port send their requests one after another: the most
// urgent first, and the oldest first among equals.
func TestTurns(t *testing.T) {
	server, other := serveActions(t), serveActions(t)
	synctest.Test(t, func(t *testing.T) {
		end := takeNow(t, server.addr)
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
		end()
		synctest.Wait()
		if got, want := server.actions(), []string{"First", "Second", "Delete", "Renewal", "Check"}; !slices.Equal(got, want) {
			t.Errorf("order %v, want %v", got, want)
		}
	})
}

// A request whose context ends while it waits is not sent, and leaves the queue.
func TestTurnGivenUp(t *testing.T) {
	server := serveActions(t)
	synctest.Test(t, func(t *testing.T) {
		end := takeNow(t, server.addr)
		c := server.client(t, ip1, ClientConfig{})
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		givenUp := make(chan error, 1)
		go func() { givenUp <- c.perform(ctx, "GivenUp", nil, nil) }()
		synctest.Wait()
		cancel(enough)
		if err := <-givenUp; !errors.Is(err, enough) {
			t.Errorf("error %v, want the cause", err)
		}
		end()
		takeNow(t, server.addr)()
		if got := server.actions(); len(got) != 0 {
			t.Errorf("asked for %v", got)
		}
	})
}
