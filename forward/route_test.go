package forward_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestRouteReturns checks that the mapping is lost when the default route disappears, and
// requested at once when the route is back. The next regular attempt would be much later.
// A later network change that does not affect the route must not lose the mapping again.
func TestRouteReturns(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	events := make(chan forward.Event, 16)
	f := newLoopbackForwarder(t, forward.Config{Protocols: []string{"natpmp"}, OnEvent: func(e forward.Event) { events <- e }})
	f.SetJitter(func(time.Duration) time.Duration { return time.Hour }) // no regular attempt
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	event := func(want forward.EventKind) {
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
	if err := f.SetDefaultGateways(gw.Addr()); err != nil {
		t.Fatal(err)
	}
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	event(forward.EventMapped)
	if err := f.SetDefaultGateways(); err != nil { // there is no default route
		t.Fatal(err)
	}
	f.NetworkChanged() // like the network watcher
	event(forward.EventLost)
	for m.Err() == nil { // until the attempt without a route has failed
		changed := m.Changed()
		if m.Err() != nil {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("no attempt failed without a route")
		}
	}
	if err := f.SetDefaultGateways(gw.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	event(forward.EventRestored)
	if err := m.Err(); err != nil || len(gw.Table()) != 1 {
		t.Errorf("after the route is back: %v, %v; the gateway has %v", m, err, gw.Table())
	}
	f.NetworkChanged() // a change of another route
	gw.SetExternal(netip.MustParseAddr("45.45.45.77"))
	if _, err := f.ExternalIP(ctx); err != nil { // otherwise the backend uses the address that it received in the last second
		t.Fatal(err)
	}
	if err := m.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	event(forward.EventChanged) // no event precedes it
}

// TestRouteChange checks that a mapping moves when the network watcher reports another
// default route.
func TestRouteChange(t *testing.T) {
	gw1 := startGateway(t, gatewaytest.Config{})
	gw2 := startGateway(t, gatewaytest.Config{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	f := newLoopbackForwarder(t, forward.Config{Protocols: []string{"natpmp"}})
	if err := f.SetDefaultGateways(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	if err := f.SetDefaultGateways(gw2.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	if !eventually(t, 20*time.Second, func() bool { return len(gw1.Table()) == 0 && len(gw2.Table()) == 1 }) {
		t.Errorf("the first gateway has %v, the second %v", gw1.Table(), gw2.Table())
	}
}

// TestRouteChangeDuringCall checks that a mapping moves if a call uses the new route
// before the network watcher reports it.
func TestRouteChangeDuringCall(t *testing.T) {
	gw1 := startGateway(t, gatewaytest.Config{})
	gw2 := startGateway(t, gatewaytest.Config{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	f := newLoopbackForwarder(t, forward.Config{Protocols: []string{"natpmp"}})
	if err := f.SetDefaultGateways(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.SetDefaultGateways(gw2.Addr()); err != nil { // the route changes
		t.Fatal(err)
	}
	if _, err := f.ExternalIP(t.Context()); err != nil { // within the 100 ms in which Watch collects changes
		t.Fatal(err)
	}
	f.NetworkChanged() // like the network watcher
	if !eventually(t, 20*time.Second, func() bool { return len(gw2.Table()) == 1 }) {
		t.Errorf("the mapping is still at %v, next attempt in %v; the first gateway has %d mappings, the second %d", m.Gateway(), time.Until(m.Status().NextAttempt), len(gw1.Table()), len(gw2.Table()))
	}
}

// TestRouteChangeDuringEnable changes the default route while Enable is in progress.
func TestRouteChangeDuringEnable(t *testing.T) {
	gw1 := startGateway(t, gatewaytest.Config{})
	gw2 := startGateway(t, gatewaytest.Config{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	f := newLoopbackForwarder(t, forward.Config{Protocols: []string{"natpmp"}})
	if err := f.SetDefaultGateways(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	hold := make(chan struct{})
	gw1.Inject(gatewaytest.Fault{Match: isMap, Hold: hold})
	done := make(chan *forward.Mapping)
	go func() {
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Error(err)
		}
		done <- m
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := gw1.AwaitRequests(ctx, 1, isMap); err != nil {
		t.Fatal(err)
	}
	if err := f.SetDefaultGateways(gw2.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	close(hold)
	m := <-done
	if !eventually(t, 20*time.Second, func() bool { return len(gw2.Table()) == 1 }) {
		t.Errorf("the mapping is at %v, next attempt in %v; the first gateway has %d mappings, the second %d", m.Gateway(), time.Until(m.Status().NextAttempt), len(gw1.Table()), len(gw2.Table()))
	}
}

// TestPendingDeleteOnOldRoute checks that a pending deletion is not sent to a gateway
// that is no longer on the default route, since another gateway may have its address.
// When the route is back, the mapping is taken over.
func TestPendingDeleteOnOldRoute(t *testing.T) {
	gw1 := startGateway(t, gatewaytest.Config{})
	gw2 := startGateway(t, gatewaytest.Config{Listen: netip.MustParseAddrPort("127.0.0.2:0")})
	f := newLoopbackForwarder(t, forward.Config{Protocols: []string{"natpmp"}})
	if err := f.SetDefaultGateways(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	removeFault := gw1.Inject(gatewaytest.Fault{Match: isUnmap, Drop: true})
	if err := f.SetDefaultGateways(gw2.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	ownerEnded := func() bool { return f.RouteCount() == 1 } // the owner of the first gateway has ended
	if !eventually(t, 20*time.Second, func() bool { return len(gw2.Table()) == 1 && ownerEnded() }) {
		t.Fatalf("the first gateway has %v, the second %v", gw1.Table(), gw2.Table())
	}
	<-time.After(2 * forward.RouteCloseTimeout)
	before := countRequests(gw1, isUnmap)
	<-time.After(2 * time.Second)
	if n := countRequests(gw1, isUnmap); n != before {
		t.Errorf("%d requests were sent to a gateway that is not on the default route", n-before)
	}
	if err := f.SetDefaultGateways(gw1.Addr()); err != nil {
		t.Fatal(err)
	}
	f.NetworkChanged()
	if !eventually(t, 20*time.Second, func() bool { return len(gw2.Table()) == 0 }) {
		t.Fatalf("the first gateway has %v, the second %v", gw1.Table(), gw2.Table())
	}
	removeFault()
	if err := f.Shutdown(t.Context()); err != nil || len(gw1.Table()) != 0 {
		t.Errorf("Shutdown: %v; the first gateway has %v", err, gw1.Table())
	}
}
