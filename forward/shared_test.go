package forward_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestShared checks that mappings with the same identity share one mapping on the
// gateway, which is deleted when the last handle is closed.
func TestShared(t *testing.T) {
	gw := newFakeGateway()
	gw.taken[8080] = true
	a, b := newForwarder(t, forward.Config{}, gw), newForwarder(t, forward.Config{}, gw)
	defer a.Close()
	defer b.Close()
	first, err := a.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if first.External() != second.External() {
		t.Errorf("%v and %v, want the same endpoint", first.External(), second.External())
	}
	if other, err := b.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Minute)); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("Enable with other options: %v, %v; want ErrConflict", other, err)
	}
	if err := first.Close(); err != nil || len(gw.live()) != 1 {
		t.Errorf("after the first Close (%v) the gateway has %v", err, gw.live())
	}
	if err := first.Close(); err != nil || len(gw.live()) != 1 {
		t.Errorf("after closing the first again (%v) the gateway has %v", err, gw.live())
	}
	if err := second.Close(); err != nil || len(gw.live()) != 0 {
		t.Errorf("after the last Close (%v) the gateway has %v", err, gw.live())
	}
}

// TestSharedConflictWithoutFallback checks that a conflict within the process does not
// cause an attempt with another backend.
func TestSharedConflictWithoutFallback(t *testing.T) {
	first, second := newFakeGateway(), newFakeGateway()
	first.name, second.name = "first", "second"
	f := newForwarder(t, forward.Config{}, first, second)
	defer f.Close()
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	if m, err := f.Enable(t.Context(), forward.TCP(8080), forward.External(9090)); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("Enable with other options: %v, %v; want ErrConflict", m, err)
	}
	if calls := second.takeCalls(); len(calls) != 0 {
		t.Errorf("requests to the second backend %q, want none", calls)
	}
}

// TestSharedGatewayByAddressAndSource checks that two Forwarders share the mappings of a
// gateway, even if only one of them names the source address.
func TestSharedGatewayByAddressAndSource(t *testing.T) {
	gw, a := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	b, err := forward.New(&forward.Config{
		Gateway: gw.Addr(), Source: netip.MustParseAddr("127.0.0.1"), Test: forward.TestNetwork{Announce: netip.MustParseAddrPort("127.0.0.1:0")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := a.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	m, err := b.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Close of one of two handles: %v, the gateway has %v", err, gw.Table())
	}
}

// TestSharedCloseDuringAcquire closes one handle while another handle acquires the same
// mapping. Afterwards the mapping exists until the second handle is closed, no matter
// which of the requests is still in flight.
func TestSharedCloseDuringAcquire(t *testing.T) {
	for name, test := range map[string]struct {
		delayed    []string // the calls whose replies are delayed
		closeFirst bool
	}{
		"the second handle is being granted": {[]string{"map", "renew"}, false},
		"the first handle is being deleted":  {[]string{"unmap"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				a, b := newForwarder(t, forward.Config{}, gw), newForwarder(t, forward.Config{}, gw)
				defer a.Close()
				defer b.Close()
				first, err := a.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				release := make(chan struct{})
				gw.set(func() {
					gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
						if slices.Contains(test.delayed, op) {
							<-release
						}
						return nil
					}
				})
				var second *forward.Mapping
				acquired, closed := make(chan error, 1), make(chan error, 1)
				acquire := func() {
					var err error
					second, err = b.Enable(t.Context(), forward.TCP(8080))
					acquired <- err
				}
				steps := []func(){acquire, func() { closed <- first.Close() }}
				if test.closeFirst {
					slices.Reverse(steps)
				}
				for _, step := range steps {
					go step()
					synctest.Wait()
				}
				close(release)
				if err := errors.Join(<-acquired, <-closed); err != nil {
					t.Fatal(err)
				}
				if live := gw.live(); len(live) != 1 || second.External().AddrPort != live[0].External {
					t.Errorf("the second handle has %v, the gateway has %v; want one mapping", second, live)
				}
				if err := second.Close(); err != nil || len(gw.live()) != 0 {
					t.Errorf("after the last Close (%v) the gateway has %v", err, gw.live())
				}
			})
		})
	}
}

// mappingEvents records the events of each mapping as "kind port".
type mappingEvents struct {
	mu        sync.Mutex
	byMapping map[*forward.Mapping][]string
}

func (r *mappingEvents) record(e forward.Event) {
	var port uint16
	if len(e.Grants) > 0 {
		port = e.Grants[0].External.Port()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byMapping[e.Mapping] = append(r.byMapping[e.Mapping], fmt.Sprint(e.Kind, " ", port))
}

// of returns the events of a mapping.
func (r *mappingEvents) of(m *forward.Mapping) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.byMapping[m])
}

// TestSharedPortChanges checks two handles of one port. If a renewal is granted another
// external port, both handles report that port, and each gets an event.
func TestSharedPortChanges(t *testing.T) {
	for name, twoForwarders := range map[string]bool{"one Forwarder": false, "two Forwarders": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw, events := newFakeGateway(), &mappingEvents{byMapping: map[*forward.Mapping][]string{}}
				config := forward.Config{OnEvent: events.record}
				f := newForwarder(t, config, gw)
				defer f.Close()
				g := f
				if twoForwarders {
					g = newForwarder(t, config, gw)
					defer g.Close()
				}
				renewed, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				other, err := g.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				gw.set(func() { gw.taken[8080] = true })
				if err := renewed.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				for name, m := range map[string]*forward.Mapping{"renewed": renewed, "other": other} {
					if got := m.External().Port(); got != 8081 {
						t.Errorf("the gateway forwards port 8081, but the %s handle reports port %d", name, got)
					}
					if got, want := events.of(m), []string{"mapped 8080", "changed 8081"}; !slices.Equal(got, want) {
						t.Errorf("the %s handle got the events %q, want %q", name, got, want)
					}
				}
			})
		})
	}
}

// TestSharedShutdown closes two Forwarders that share a mapping while a request for it is
// in flight. The Forwarder that ends last deletes the mapping, even if the other was
// closed after it.
func TestSharedShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		first, last := newForwarder(t, forward.Config{}, gw), newForwarder(t, forward.Config{}, gw)
		if _, err := first.Enable(t.Context(), forward.UDP(8080)); err != nil {
			t.Fatal(err)
		}
		shared, err := last.Enable(t.Context(), forward.UDP(8080))
		if err != nil {
			t.Fatal(err)
		}
		timeout := func(d time.Duration) context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			t.Cleanup(cancel)
			return ctx
		}
		gw.set(func() { gw.block = true })
		go func() { _ = shared.Refresh(timeout(5 * time.Second)) }()
		synctest.Wait()
		go func() { _ = shared.Shutdown(timeout(time.Minute)) }()
		synctest.Wait()
		_ = first.Shutdown(timeout(time.Second))
		gw.set(func() { gw.block = false })
		if err := last.Shutdown(timeout(time.Minute)); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if live := gw.live(); len(live) != 0 {
			t.Errorf("Shutdown returned nil, but the gateway has %v", live)
		}
	})
}

// TestCloseDuringOtherRetry checks that Close of a Forwarder attempts its pending
// deletions, even if a deletion of another Forwarder at the same gateway is in flight.
func TestCloseDuringOtherRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		other, f := newForwarder(t, forward.Config{}, gw), newForwarder(t, forward.Config{}, gw)
		defer other.Close()
		unanswered := enable8080(t, other)
		mapping, err := f.Enable(t.Context(), forward.TCP(9090))
		if err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		for _, m := range []*forward.Mapping{unanswered, mapping} {
			if err := m.Close(); err == nil {
				t.Error("Close returned nil")
			}
		}
		gw.set(func() {
			gw.fail = func(_ string, _ backends.Protocol, suggested uint16) error {
				if suggested == 8080 {
					time.Sleep(900 * time.Millisecond)
					return backends.ErrNoReply
				}
				return nil
			}
		})
		gw.takeCalls()
		for len(gw.takeCalls()) == 0 { // until a retry is in flight
			time.Sleep(10 * time.Millisecond)
		}
		if err := f.Close(); err != nil {
			t.Error("Close:", err)
		}
		if live := gw.live(); len(live) != 1 || live[0].Internal.Port() != 8080 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestConcurrentCloseTakesOver checks that a Forwarder takes over the pending deletion of
// another one that is closed at the same time.
func TestConcurrentCloseTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		first, second := newForwarder(t, forward.Config{}, gw), newForwarder(t, forward.Config{}, gw)
		enable8080(t, first)
		if _, err := second.Enable(t.Context(), forward.TCP(9090)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		gw.set(func() {
			gw.fail = func(_ string, _ backends.Protocol, suggested uint16) error {
				switch {
				case suggested != 8080:
					time.Sleep(500 * time.Millisecond)
				case time.Since(start) < 150*time.Millisecond: // two attempts
					time.Sleep(100 * time.Millisecond)
					return backends.ErrNoReply
				}
				return nil
			}
		})
		ended := make(chan error)
		go func() { ended <- second.Close() }()
		synctest.Wait()
		if err := first.Close(); err == nil {
			t.Error("Close of the first Forwarder returned nil")
		}
		if err := <-ended; err != nil {
			t.Error("Close of the second Forwarder:", err)
		}
		if live := gw.live(); len(live) > 0 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestLaterCloseTakesOver checks that a Forwarder takes over a deletion that was in
// flight when another Forwarder ended, and attempts it in its own Close.
func TestLaterCloseTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		first, second := newForwarder(t, forward.Config{}, gw), newForwarder(t, forward.Config{}, gw)
		enable8080(t, first)
		if _, err := second.Enable(t.Context(), forward.TCP(9090)); err != nil {
			t.Fatal(err)
		}
		gw.set(func() { gw.block = true })
		if err := first.Close(); err == nil {
			t.Error("Close of the first Forwarder returned nil")
		}
		gw.set(func() { gw.block = false })
		if err := second.Close(); err != nil || len(gw.live()) > 0 {
			t.Errorf("Close of the second Forwarder returned %v, and the gateway has %v", err, gw.live())
		}
	})
}

// TestStartDuringClose creates a Forwarder while another one ends at the same gateway.
// The new Forwarder deletes the mappings that the other could not delete.
func TestStartDuringClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		config := &forward.Config{Backends: []backends.Backend{slowWatchGateway{gw}}}
		ended := closeWithoutReply(t, gw, config)
		second := newEnabledForwarder(t, config, forward.TCP(9090))
		defer second.Close()
		if err := <-ended; err == nil {
			t.Error("Close of the first Forwarder returned no error")
		}
		time.Sleep(2 * time.Minute)
		if live := gw.live(); len(live) != 1 || live[0].Internal.Port() != 9090 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestStartDuringCloseOtherPort is TestStartDuringClose with a gateway that identifies
// mappings by their external ports. The new Forwarder maps the same internal port to
// another external port.
func TestStartDuringCloseOtherPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		gw.name = upnp.Name
		config := &forward.Config{Backends: []backends.Backend{slowWatchGateway{gw}}}
		ended := closeWithoutReply(t, gw, config)
		second := newEnabledForwarder(t, config, forward.TCP(8080), forward.External(9090))
		defer second.Close()
		<-ended
		time.Sleep(2 * time.Minute)
		if live := gw.live(); len(live) != 1 || live[0].External.Port() != 9090 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestStartDuringCloseSamePort is TestStartDuringClose with a new Forwarder that gets the
// mapping of the old one because of SamePort.
func TestStartDuringCloseSamePort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		config := &forward.Config{Backends: []backends.Backend{slowWatchGateway{gw}}}
		ended := closeWithoutReply(t, gw, config)
		gw.set(func() { gw.taken[8079] = true })
		second := newEnabledForwarder(t, config, forward.TCP(8079), forward.SamePort())
		defer second.Close()
		<-ended
		time.Sleep(2 * time.Minute)
		if live := gw.live(); len(live) != 1 || live[0].Internal.Port() != 8080 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestStartDuringCloseTwoBackends is TestStartDuringClose with two ready-made backends.
// Another Forwarder takes over each of them.
func TestStartDuringCloseTwoBackends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw1, gw2 := newFakeGateway(), newFakeGateway()
		gw1.fail = func(_ string, _ backends.Protocol, suggested uint16) error {
			if suggested == 9090 {
				return backends.ErrNotAuthorized
			}
			return nil
		}
		backend1, backend2 := slowWatchGateway{gw1}, slowWatchGateway{gw2}
		first := newEnabledForwarder(t, &forward.Config{Backends: []backends.Backend{backend1, backend2}}, forward.TCP(8080))
		if _, err := first.Enable(t.Context(), forward.TCP(9090)); err != nil {
			t.Fatal(err)
		}
		if len(gw1.live()) != 1 || len(gw2.live()) != 1 {
			t.Fatalf("the gateways have %v and %v", gw1.live(), gw2.live())
		}
		for _, gw := range []*fakeGateway{gw1, gw2} {
			gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
		}
		ended := make(chan error)
		go func() { ended <- first.Close() }()
		time.Sleep(2500 * time.Millisecond) // the watches have not returned yet
		for _, gw := range []*fakeGateway{gw1, gw2} {
			gw.set(func() { gw.fail = nil })
		}
		for _, b := range []backends.Backend{backend1, backend2} {
			f := newEnabledForwarder(t, &forward.Config{Backends: []backends.Backend{b}}, forward.TCP(7070))
			defer f.Close()
		}
		if err := <-ended; err == nil {
			t.Error("Close of the first Forwarder returned no error")
		}
		time.Sleep(2 * time.Minute)
		for _, gw := range []*fakeGateway{gw1, gw2} {
			if live := gw.live(); len(live) != 1 || live[0].Internal.Port() != 7070 {
				t.Errorf("one gateway has %v", live)
			}
		}
	})
}

// newEnabledForwarder returns a Forwarder that has enabled a mapping.
func newEnabledForwarder(t *testing.T, config *forward.Config, opts ...forward.Option) *forward.Forwarder {
	t.Helper()
	f, err := forward.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enable(t.Context(), opts...); err != nil {
		t.Fatal(err)
	}
	return f
}

// closeWithoutReply starts to close a Forwarder whose deletions get no reply. The gateway
// replies again when the function returns.
func closeWithoutReply(t *testing.T, gw *fakeGateway, config *forward.Config) (ended chan error) {
	t.Helper()
	f := newEnabledForwarder(t, config, forward.TCP(8080))
	gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
	ended = make(chan error)
	go func() { ended <- f.Close() }()
	synctest.Wait() // until Close waits for the watch
	gw.set(func() { gw.fail = nil })
	return ended
}

// TestStartDuringCloseRefused is TestStartDuringClose with a new Forwarder that requests
// the same mapping. The gateway refuses it after the old Forwarder has ended.
func TestStartDuringCloseRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		config := &forward.Config{Backends: []backends.Backend{slowWatchGateway{gw}}}
		ended := closeWithoutReply(t, gw, config)
		gw.set(func() {
			gw.fail = func(op string, _ backends.Protocol, _ uint16) error {
				if op == "map" {
					time.Sleep(3 * time.Second)
				}
				return backends.ErrNotAuthorized
			}
		})
		second, err := forward.New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if _, err := second.Enable(t.Context(), forward.TCP(8080)); err == nil {
			t.Error("Enable succeeded")
		}
		<-ended
		time.Sleep(time.Minute)
		gw.set(func() { gw.fail = nil })
		time.Sleep(2 * time.Minute)
		if live := gw.live(); len(live) > 0 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// TestStartDuringCloseNoReply is TestStartDuringCloseRefused with a request that gets no
// reply. The new Forwarder must keep two facts about the old mapping: it lasts forever,
// and it can be deleted even if the gateway refuses to grant it again.
func TestStartDuringCloseNoReply(t *testing.T) {
	refusesMap := func(op string, _ backends.Protocol, _ uint16) error {
		if op == "map" {
			return backends.ErrNotAuthorized
		}
		return nil
	}
	for name, fail := range map[string]func(string, backends.Protocol, uint16) error{"forever": nil, "refused": refusesMap} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				config := &forward.Config{Backends: []backends.Backend{foreverGateway{slowWatchGateway{gw}}}}
				ended := closeWithoutReply(t, gw, config)
				gw.set(func() { gw.fail = failAll(backends.ErrNoReply) })
				second, err := forward.New(config)
				if err != nil {
					t.Fatal(err)
				}
				defer second.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if _, err := second.Enable(ctx, forward.TCP(8080), forward.Lifetime(2*time.Minute)); err == nil {
					t.Fatal("Enable succeeded")
				}
				<-ended
				time.Sleep(5 * time.Minute)
				gw.set(func() { gw.fail = fail })
				time.Sleep(5 * time.Minute)
				if live := gw.live(); len(live) > 0 {
					t.Errorf("the gateway has %v", live)
				}
			})
		})
	}
}

// TestCloseReportsTakenOverMapping checks that Close reports a mapping that an ended
// Forwarder requested without a reply, if it is not deleted.
func TestCloseReportsTakenOverMapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		b := &lossyGateway{fakeGateway: gw}
		config := &forward.Config{Backends: []backends.Backend{b}}
		first, err := forward.New(config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := first.Enable(t.Context(), forward.TCP(8080)); err == nil {
			t.Fatal("Enable succeeded")
		}
		gw.set(func() { gw.fail = noReplyFor(8080) })
		if err := first.Close(); err == nil {
			t.Error("Close of the first Forwarder returned nil")
		}
		b.delivers.Store(true)
		second := newEnabledForwarder(t, config, forward.TCP(9090))
		time.Sleep(time.Minute)
		if err := second.Close(); err == nil {
			t.Errorf("Close of the second Forwarder returned nil, and the gateway has %v", gw.live())
		}
	})
}
