package forward_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
)

// Two Forwarders share a mapping, and both end while a request about it is in flight. The
// one that ends last deletes it, also if the other was asked to end after it.
func TestEndOfShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		first, last := forwarder(t, forward.Config{}, m), forwarder(t, forward.Config{}, m)
		if _, err := first.Enable(t.Context(), forward.UDP(8080)); err != nil {
			t.Fatal(err)
		}
		shared, err := last.Enable(t.Context(), forward.UDP(8080))
		if err != nil {
			t.Fatal(err)
		}
		within := func(d time.Duration) context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			t.Cleanup(cancel)
			return ctx
		}
		m.set(func() { m.block = true })
		go func() { _ = shared.Refresh(within(5 * time.Second)) }()
		synctest.Wait()
		go func() { _ = shared.Shutdown(within(time.Minute)) }()
		synctest.Wait()
		_ = first.Shutdown(within(time.Second))
		m.set(func() { m.block = false })
		if err := last.Shutdown(within(time.Minute)); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if live := m.live(); len(live) != 0 {
			t.Errorf("Shutdown returned nil, and the gateway has %v", live)
		}
	})
}

// A Forwarder is created while another one ends at the same gateway. It deletes what the
// other could not.
func TestBeginWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		config := &forward.Config{Backends: []backends.Backend{lingering{m}}}
		ended := endUnanswered(t, m, config)
		second := beginEnabled(t, config, forward.TCP(9090))
		defer second.Close()
		if err := <-ended; err == nil {
			t.Error("Close of the first Forwarder returned no error")
		}
		time.Sleep(2 * time.Minute)
		if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 9090 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// lingering is a backend whose Watch returns late.
type lingering struct{ *memory }

func (l lingering) Watch(ctx context.Context, notify func(backends.Change)) error {
	err := l.memory.Watch(ctx, notify)
	time.Sleep(time.Second)
	return err
}

// As TestBeginWhileAnotherEnds, with a gateway that tells mappings apart by their external
// ports. The second Forwarder maps the same internal port to another one.
func TestAnotherPortWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.name = upnp.Name
		config := &forward.Config{Backends: []backends.Backend{lingering{m}}}
		ended := endUnanswered(t, m, config)
		second := beginEnabled(t, config, forward.TCP(8080), forward.External(9090))
		defer second.Close()
		<-ended
		time.Sleep(2 * time.Minute)
		if live := m.live(); len(live) != 1 || live[0].External.Port() != 9090 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// As TestBeginWhileAnotherEnds. The second Forwarder has the mapping of the first, by
// SamePort.
func TestSamePortWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		config := &forward.Config{Backends: []backends.Backend{lingering{m}}}
		ended := endUnanswered(t, m, config)
		m.set(func() { m.taken[8079] = true })
		second := beginEnabled(t, config, forward.TCP(8079), forward.SamePort())
		defer second.Close()
		<-ended
		time.Sleep(2 * time.Minute)
		if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 8080 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// As TestBeginWhileAnotherEnds, with two ready-made backends, each of which another
// Forwarder takes over.
func TestTwoBeginWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newMemory(), newMemory()
		one.fail = func(_ string, _ backends.Protocol, wish uint16) error {
			if wish == 9090 {
				return backends.ErrNotAuthorized
			}
			return nil
		}
		backendOne, backendTwo := lingering{one}, lingering{two}
		first := beginEnabled(t, &forward.Config{Backends: []backends.Backend{backendOne, backendTwo}}, forward.TCP(8080))
		if _, err := first.Enable(t.Context(), forward.TCP(9090)); err != nil {
			t.Fatal(err)
		}
		if len(one.live()) != 1 || len(two.live()) != 1 {
			t.Fatalf("the gateways have %v and %v", one.live(), two.live())
		}
		for _, m := range []*memory{one, two} {
			m.set(func() { m.fail = answers(backends.ErrNoReply) })
		}
		ended := make(chan error)
		go func() { ended <- first.Close() }()
		time.Sleep(2500 * time.Millisecond) // the watches linger
		for _, m := range []*memory{one, two} {
			m.set(func() { m.fail = nil })
		}
		for _, b := range []backends.Backend{backendOne, backendTwo} {
			f := beginEnabled(t, &forward.Config{Backends: []backends.Backend{b}}, forward.TCP(7070))
			defer f.Close()
		}
		if err := <-ended; err == nil {
			t.Error("Close of the first Forwarder returned no error")
		}
		time.Sleep(2 * time.Minute)
		for _, m := range []*memory{one, two} {
			if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 7070 {
				t.Errorf("a gateway has %v", live)
			}
		}
	})
}

// beginEnabled returns a Forwarder that has a mapping.
func beginEnabled(t *testing.T, config *forward.Config, opts ...forward.Option) *forward.Forwarder {
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

// endUnanswered begins to end a Forwarder whose deletions get no reply.
func endUnanswered(t *testing.T, m *memory, config *forward.Config) (ended chan error) {
	t.Helper()
	f := beginEnabled(t, config, forward.TCP(8080))
	m.set(func() { m.fail = answers(backends.ErrNoReply) })
	ended = make(chan error)
	go func() { ended <- f.Close() }()
	synctest.Wait() // for the watch to end
	m.set(func() { m.fail = nil })
	return ended
}

// Close of a Forwarder attempts its pending deletions, also while one of another Forwarder
// at the same gateway is in flight.
func TestCloseBesideRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		other, f := forwarder(t, forward.Config{}, m), forwarder(t, forward.Config{}, m)
		defer other.Close()
		silent := enable8080(t, other)
		mapping, err := f.Enable(t.Context(), forward.TCP(9090))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		for _, m := range []*forward.Mapping{silent, mapping} {
			if err := m.Close(); err == nil {
				t.Error("Close returned nil")
			}
		}
		m.set(func() {
			m.fail = func(_ string, _ backends.Protocol, wish uint16) error {
				if wish == 8080 {
					time.Sleep(900 * time.Millisecond)
					return backends.ErrNoReply
				}
				return nil
			}
		})
		m.calls()
		for len(m.calls()) == 0 { // until a retry is in flight
			time.Sleep(10 * time.Millisecond)
		}
		if err := f.Close(); err != nil {
			t.Error("Close:", err)
		}
		if live := m.live(); len(live) != 1 || live[0].Internal.Port() != 8080 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// A Forwarder leaves a deletion to another one that is being closed, which attempts it.
func TestCloseOfTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		first, second := forwarder(t, forward.Config{}, m), forwarder(t, forward.Config{}, m)
		enable8080(t, first)
		if _, err := second.Enable(t.Context(), forward.TCP(9090)); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		m.set(func() {
			m.fail = func(_ string, _ backends.Protocol, wish uint16) error {
				switch {
				case wish != 8080:
					time.Sleep(500 * time.Millisecond)
				case time.Since(begun) < 150*time.Millisecond: // two attempts
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
		if live := m.live(); len(live) > 0 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// What is requested for a mapping of Once while the Forwarder is closed is deleted: nobody
// was told of it.
func TestCloseWhileOnceIsRequested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		mapping, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once())
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() {
			m.fail = func(op string, _ backends.Protocol, _ uint16) error {
				if op == "map" {
					time.Sleep(time.Second)
				}
				return nil
			}
		})
		refreshed := make(chan error)
		go func() { refreshed <- mapping.Refresh(t.Context(), forward.External(9090)) }()
		synctest.Wait()
		if err := f.Close(); err != nil {
			t.Error("Close:", err)
		}
		if err := <-refreshed; !errors.Is(err, forward.ErrClosed) {
			t.Error("Refresh:", err)
		}
		if live := m.live(); len(live) > 0 {
			t.Errorf("the gateway has %v", live)
		}
	})
}
