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

// A Forwarder is created while another one ends at the same gateway. It deletes what the
// other could not.
func TestBeginWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		config := &forward.Config{Backends: []backends.Backend{lingering{m}}}
		first, err := forward.New(config)
		if err != nil {
			t.Fatal(err)
		}
		enable8080(t, first)
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		ended := make(chan error)
		go func() { ended <- first.Close() }()
		synctest.Wait() // for the watch to end
		m.set(func() { m.fail = nil })
		second, err := forward.New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if _, err := second.Enable(t.Context(), forward.TCP(9090)); err != nil {
			t.Fatal(err)
		}
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
