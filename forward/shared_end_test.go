package forward_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
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

// A Forwarder leaves a deletion that is in flight to another one, whose Close begins after
// that. It attempts the deletion.
func TestCloseAfterAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		first, second := forwarder(t, forward.Config{}, m), forwarder(t, forward.Config{}, m)
		enable8080(t, first)
		if _, err := second.Enable(t.Context(), forward.TCP(9090)); err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.block = true })
		if err := first.Close(); err == nil {
			t.Error("Close of the first Forwarder returned nil")
		}
		m.set(func() { m.block = false })
		if err := second.Close(); err != nil || len(m.live()) > 0 {
			t.Errorf("Close of the second Forwarder returned %v, and the gateway has %v", err, m.live())
		}
	})
}
