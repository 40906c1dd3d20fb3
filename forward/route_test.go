package forward_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	. "github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// The default route goes, and the mapping is lost. When the route is back, the mapping
// is asked for at once: the next attempt would come much later. A later change of the
// network that leaves the route alone does not lose it again.
func TestRouteReturns(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	events := make(chan Event, 16)
	f := newOn(t, Config{Protocols: []string{"natpmp"}, OnEvent: func(e Event) { events <- e }})
	f.SetJitter(func(time.Duration) time.Duration { return time.Hour }) // no attempt by chance
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	event := func(want EventKind) {
		t.Helper()
		select {
		case e := <-events:
			if e.Kind != want {
				t.Fatalf("event %v, want %v", e.Kind, want)
			}
		case <-ctx.Done():
			t.Fatalf("no event %v", want)
		}
	}
	if err := f.LeadTo(gw.Addr()); err != nil {
		t.Fatal(err)
	}
	m, err := f.Enable(t.Context(), TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	event(EventMapped)
	if err := f.LeadTo(); err != nil { // there is no default route
		t.Fatal(err)
	}
	f.NetworkChanged() // as the watcher of the network does
	event(EventLost)
	for m.Err() == nil { // the attempt without a route
		changed := m.Changed()
		if m.Err() != nil {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("no attempt fails without a route")
		}
	}
	if err := f.LeadTo(gw.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	event(EventRestored)
	if err := m.Err(); err != nil || len(gw.Table()) != 1 {
		t.Errorf("after the route is back: %v, %v; the gateway has %v", m, err, gw.Table())
	}
	f.NetworkChanged() // of a change that is about another route
	gw.SetExternal(netip.MustParseAddr("45.45.45.77"))
	if _, err := f.ExternalIP(ctx); err != nil { // the backend uses an address that it got within a second
		t.Fatal(err)
	}
	if err := m.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	event(EventChanged) // and nothing before it
}
