package gethnat_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/adapters/gethnat"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// eventLog keeps the events of a Forwarder.
type eventLog chan forward.Event

func newLog() eventLog { return make(eventLog, 100) }

func (l eventLog) record(e forward.Event) { l <- e }

// next is the next event of a kind, or false where none comes.
func (l eventLog) next(kind forward.EventKind) (forward.Event, bool) {
	over := time.After(patience / 20)
	for {
		select {
		case e := <-l:
			if e.Kind == kind {
				return e, true
			}
		case <-over:
			return forward.Event{}, false
		}
	}
}

// notice polls the external address, as a server does, until that shows that the
// gateway has restarted. The first poll may come too early: the Forwarder begins
// to follow a gateway when it has its first mapping.
func notice(t *testing.T, gw *gatewaytest.Gateway, n *gethnat.NAT, events eventLog, kind forward.EventKind) forward.Event {
	t.Helper()
	for range 20 {
		wantIP(t, n, gw)
		if e, ok := events.next(kind); ok {
			return e
		}
		gw.Advance(time.Hour)
		wantIP(t, n, gw)
		gw.Restart(gatewaytest.RestartOptions{Silent: true})
	}
	t.Fatalf("no event %v", kind)
	return forward.Event{}
}

// refuse makes the gateway refuse mappings until the function that it returns is called.
func refuse(gw *gatewaytest.Gateway) func() {
	return gw.Inject(gatewaytest.Fault{
		Match:  func(r gatewaytest.Request) bool { return r.Op == "map" },
		Result: int(natpmp.NotAuthorized),
	})
}

// The gateway restarts without a word, and another host takes the port before
// the poll of the external address shows it: the next call tells the new port.
func TestPortChanges(t *testing.T) {
	events := newLog()
	gw, f := start(t, forward.Config{Protocols: []string{"natpmp"}, OnEvent: events.record}, gatewaytest.Config{})
	gw.Advance(time.Hour) // so that a restart shows
	n := gethnat.New(f)
	if got := add(t, n, "TCP", 0); got != port {
		t.Fatalf("external port %d, want %d", got, port)
	}
	gw.Down()
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	take(t, gw, backends.TCP)
	if err := gw.Up(); err != nil {
		t.Fatal(err)
	}
	is := notice(t, gw, n, events, forward.EventRestored).Grants[0].External.Port()
	if is == port || is == 0 {
		t.Fatalf("restored at port %d, which is taken", is)
	}
	if got := add(t, n, "TCP", port); got != is {
		t.Errorf("external port %d, want %d", got, is)
	}
	if err := n.DeleteMapping("TCP", port, port); err != nil { // by the port of before
		t.Error(err)
	}
	if table := gw.Table(); len(table) != 1 || table[0].Service != "admin" {
		t.Errorf("the gateway has %+v, want only the other host's", table)
	}
}

// What is lost is asked for at once by the next call, whatever the pace of the
// tries in the background.
func TestLost(t *testing.T) {
	events := newLog()
	gw, f := start(t, forward.Config{Protocols: []string{"natpmp"}, OnEvent: events.record}, gatewaytest.Config{})
	gw.Advance(time.Hour)
	n := gethnat.New(f)
	add(t, n, "TCP", 0)
	admit := refuse(gw)
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	notice(t, gw, n, events, forward.EventLost)
	gw.ResetStats()
	if got, err := n.AddMapping("TCP", port, port, name, lifetime); got != 0 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("AddMapping: %d, %v, want ErrNotAuthorized", got, err)
	}
	if mapRequests(gw, backends.TCP) == 0 {
		t.Error("the gateway was not asked")
	}
	admit()
	if got := add(t, n, "TCP", port); got != port {
		t.Errorf("external port %d, want %d", got, port)
	}
	if table := gw.Table(); len(table) != 1 || table[0].External.Port() != port {
		t.Errorf("the gateway has %+v", table)
	}
}

// What is refused is not held, and so not tried for when the server has stopped.
func TestRefused(t *testing.T) {
	gw, f := start(t, forward.Config{Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	admit := refuse(gw)
	if got, err := n.AddMapping("UDP", 0, port, name, lifetime); got != 0 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("AddMapping: %d, %v, want ErrNotAuthorized", got, err)
	}
	entries, err := f.Mappings(t.Context())
	if err != nil || len(entries) != 0 || n.String() != "goforward" {
		t.Errorf("%v is held by %v, %v", entries, n, err)
	}
	if err := n.DeleteMapping("UDP", port, port); err != nil {
		t.Error(err)
	}
	admit()
	if got := add(t, n, "UDP", 0); got != port {
		t.Errorf("external port %d, want %d", got, port)
	}
}

// A gateway that says nothing holds nobody up.
func TestSilence(t *testing.T) {
	gw, f := start(t, forward.Config{RequestTimeout: 2 * time.Second, Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	add(t, n, "TCP", 0)
	gw.Inject(gatewaytest.Fault{Drop: true})
	if ip, err := n.ExternalIP(); !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ExternalIP: %v, %v, want ErrNoReply", ip, err)
	}
	if got, err := n.AddMapping("UDP", 0, port, name, lifetime); !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AddMapping: %d, %v, want ErrNoReply", got, err)
	}
	if got := add(t, n, "TCP", port); got != port { // which stands, as far as anybody knows
		t.Errorf("external port %d, want %d", got, port)
	}
	if err := n.DeleteMapping("TCP", port, port); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("DeleteMapping: %v, want ErrNoReply", err)
	}
	if err := n.DeleteMapping("TCP", port, port); err != nil {
		t.Errorf("DeleteMapping of what is left to its lifetime: %v", err)
	}
}

// What its owner has disabled by the Forwarder is mapped when it is asked for again.
func TestDisabled(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	add(t, n, "TCP", 0)
	if _, err := f.DisableAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(gw.Table()) != 0 {
		t.Fatalf("the gateway has %v", gw.Table())
	}
	if got := add(t, n, "TCP", port); got != port || len(gw.Table()) != 1 {
		t.Errorf("external port %d, and the gateway has %v", got, gw.Table())
	}
}

// Who asks for the same port at once gets the same mapping, for one request.
func TestTogether(t *testing.T) {
	gw, f := start(t, forward.Config{Protocols: []string{"natpmp"}}, gatewaytest.Config{})
	n := gethnat.New(f)
	var all sync.WaitGroup
	for range 16 {
		for _, protocol := range []string{"TCP", "UDP"} {
			all.Go(func() {
				if got, err := n.AddMapping(protocol, 0, port, name, lifetime); err != nil || got != port {
					t.Errorf("AddMapping %s: %d, %v", protocol, got, err)
				}
			})
		}
	}
	all.Wait()
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		if asked := mapRequests(gw, p); asked != 1 {
			t.Errorf("%d requests for %v, want 1", asked, p)
		}
	}
}

// Whatever else goes on, what is deleted last is gone.
func TestTurmoil(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	n := gethnat.New(f)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				if _, err := n.AddMapping("TCP", 0, port, name, lifetime); err != nil {
					t.Errorf("AddMapping: %v", err)
				}
				_ = n.String()
				if err := n.DeleteMapping("TCP", port, port); err != nil {
					t.Errorf("DeleteMapping: %v", err)
				}
			}
		})
		all.Go(func() {
			for range 5 {
				if _, err := n.ExternalIP(); err != nil {
					t.Errorf("ExternalIP: %v", err)
				}
			}
		})
	}
	all.Wait()
	if table := gw.Table(); len(table) != 0 {
		t.Errorf("the gateway has %v, want nothing", table)
	}
}
