package forward_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/forward"
)

// A mapping of Once expires and is not renewed. Refresh maps it again.
func TestOnceRefreshed(t *testing.T) {
	for name, refresh := range map[string]func(context.Context, *forward.Forwarder, *forward.Mapping) error{
		"without selectors": func(ctx context.Context, f *forward.Forwarder, _ *forward.Mapping) error { return f.Refresh(ctx) },
		"by its port": func(ctx context.Context, f *forward.Forwarder, _ *forward.Mapping) error {
			return f.Refresh(ctx, forward.TCP(8080))
		},
		"by its handle": func(ctx context.Context, _ *forward.Forwarder, m *forward.Mapping) error { return m.Refresh(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(time.Minute))
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				if state := got.State(); len(state) != 0 || len(m.live()) != 0 {
					t.Fatalf("an hour later: %v, the gateway has %v; want it expired", state, m.live())
				}
				if err := refresh(t.Context(), f, got); err != nil {
					t.Fatalf("Refresh after expiry: %v; want the mapping granted again", err)
				}
				if live := m.live(); len(live) != 1 || got.External() != live[0].External || live[0].Lifetime != time.Minute {
					t.Errorf("Refresh returned nil; the handle has %v, the gateway has %v", got, live)
				}
				time.Sleep(time.Hour)
				if live := m.live(); len(live) != 0 {
					t.Errorf("an hour after Refresh the gateway has %v; want no renewal", live)
				}
			})
		})
	}
}

// A mapping of Once that ran out, and whose place another took, can be closed after its
// Forwarder.
func TestOnceReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := forwarder(t, forward.Config{}, newMemory())
		enable := func() *forward.Mapping {
			m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		replaced := enable()
		time.Sleep(time.Hour)
		enable()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := replaced.Close(); err != nil {
			t.Errorf("Close of the mapping that was replaced: %v", err)
		}
	})
}

// Two calls enable the same at once, not to be renewed. Both have it.
func TestOnceTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newDelayed(t, map[string]time.Duration{"map udp": time.Second})
		errs := make(chan error)
		for range 2 {
			go func() {
				_, err := f.Enable(t.Context(), forward.Both(8080), forward.Once())
				errs <- err
			}()
			time.Sleep(500 * time.Millisecond)
		}
		for range 2 {
			if err := <-errs; err != nil {
				t.Errorf("Enable: %v", err)
			}
		}
		if live := d.live(); len(live) != 2 {
			t.Errorf("the gateway has %v", live)
		}
	})
}

// The Forwarder is closed when half of what Once asks for is granted: that is deleted,
// since the call fails.
func TestOnceHalfGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newDelayed(t, map[string]time.Duration{"map udp": time.Second})
		failed := make(chan error)
		go func() {
			_, err := f.Enable(t.Context(), forward.Both(8080), forward.Once())
			failed <- err
		}()
		time.Sleep(500 * time.Millisecond)
		closed := f.Close()
		if err := <-failed; err == nil {
			t.Error("Enable succeeded")
		}
		if live := d.live(); closed != nil || len(live) > 0 {
			t.Errorf("Close returned %v, and the gateway has %v", closed, live)
		}
	})
}
