package forward_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
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
				if state := got.Grants(); len(state) != 0 || len(m.live()) != 0 {
					t.Fatalf("an hour later: %v, the gateway has %v; want it expired", state, m.live())
				}
				if err := refresh(t.Context(), f, got); err != nil {
					t.Fatalf("Refresh after expiry: %v; want the mapping granted again", err)
				}
				if live := m.live(); len(live) != 1 || got.External().AddrPort != live[0].External || live[0].Lifetime != time.Minute {
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

// As TestCloseWhileOnceIsRequested, with one half granted and the other in flight.
func TestCloseWhileOnceIsHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		mapping, err := f.Enable(t.Context(), forward.Both(8080), forward.Once(), forward.Lifetime(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute) // it runs out
		m.set(func() {
			m.fail = func(op string, p backends.Protocol, _ uint16) error {
				if op == "map" && p == backends.UDP {
					time.Sleep(time.Second)
				}
				return nil
			}
		})
		refreshed := make(chan error)
		go func() { refreshed <- mapping.Refresh(t.Context()) }()
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

// A mapping of Once requests what another one, whose Close got no reply, had. As the
// Forwarder of Once is closed, the deletion is not forgotten.
func TestCloseOfOnceKeepsDeletion(t *testing.T) {
	for _, shared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			f, other := forwarder(t, forward.Config{}, m), forwarder(t, forward.Config{}, m)
			once, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(2*time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Minute) // it runs out
			owner := f
			if shared {
				owner = other
			}
			mapping := enable8080(t, owner)
			m.set(func() { m.fail = answers(backends.ErrNoReply) })
			if err := mapping.Close(); err == nil {
				t.Fatal("Close returned nil")
			}
			m.set(func() {
				m.fail = func(op string, _ backends.Protocol, _ uint16) error {
					if op == "map" {
						time.Sleep(500 * time.Millisecond)
					}
					return nil
				}
			})
			refreshed := make(chan error)
			go func() { refreshed <- once.Refresh(t.Context()) }()
			synctest.Wait()
			if err := f.Close(); err != nil {
				t.Error("Close:", err)
			}
			<-refreshed
			time.Sleep(time.Minute)
			if err := other.Close(); err != nil || len(m.live()) > 0 {
				t.Errorf("Close of the other Forwarder returned %v, and the gateway has %v", err, m.live())
			}
		})
	}
}

// A mapping that shares an entry with one of Once deletes it at Close, also if it ran out
// and was granted again meanwhile.
func TestOnceLeavesWhatRanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		kept, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(2*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(2*time.Minute), forward.Once()); err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.fail = answers(backends.ErrNoReply) })
		time.Sleep(3 * time.Minute)
		m.set(func() { m.fail = nil })
		time.Sleep(2 * time.Minute)
		if kept.External().Port() != 8080 {
			t.Fatal("it was not granted again")
		}
		if err := kept.Close(); err != nil || len(m.live()) > 0 {
			t.Errorf("Close returned %v, and the gateway has %v", err, m.live())
		}
	})
}
