package forward_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// refuse makes deletions fail, but for those of a port; nil lets them be.
func (m *memory) refuse(err error, but uint16) {
	m.set(func() {
		m.fail = func(op string, _ backends.Protocol, wish uint16) error {
			if op == "unmap" && wish != but {
				return err
			}
			return nil
		}
	})
}

// A deletion that got no reply is retried until the gateway answers. It is not retried
// while the mapping is held again, nor after its lifetime.
func TestDebt(t *testing.T) {
	silence := backends.ErrNoReply
	for name, c := range map[string]struct {
		err  error
		then func(t *testing.T, f *forward.Forwarder, m *memory)
		want []string
		left int
	}{
		"silent for a while": {
			err: silence,
			then: func(_ *testing.T, _ *forward.Forwarder, m *memory) {
				time.Sleep(10 * time.Second)
				m.refuse(nil, 0)
				time.Sleep(10 * time.Second)
			},
			want: []string{"unmap tcp 8080", "unmap tcp 8080", "unmap tcp 8080", "unmap tcp 8080", "unmap tcp 8080"},
		},
		"closed before the next try": {
			err: silence,
			then: func(t *testing.T, f *forward.Forwarder, m *memory) {
				m.refuse(nil, 0)
				if err := f.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			},
			want: []string{"unmap tcp 8080", "unmap tcp 8080"},
		},
		"closed in vain": {
			err: silence,
			then: func(t *testing.T, f *forward.Forwarder, _ *memory) {
				if err := f.Shutdown(t.Context()); !errors.Is(err, silence) {
					t.Errorf("Shutdown: %v", err)
				}
			},
			want: []string{"unmap tcp 8080", "unmap tcp 8080"},
			left: 1,
		},
		"refused": {
			err:  backends.ErrNotAuthorized,
			then: func(*testing.T, *forward.Forwarder, *memory) { time.Sleep(10 * time.Minute) },
			want: []string{"unmap tcp 8080", "unmap tcp 8080"},
			left: 1,
		},
		"enabled again": {
			err: silence,
			then: func(t *testing.T, f *forward.Forwarder, m *memory) {
				m.refuse(nil, 0)
				if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Minute)
			},
			want: []string{"unmap tcp 8080", "map tcp 8080"},
			left: 1,
		},
		"over": {
			err: silence,
			then: func(_ *testing.T, _ *forward.Forwarder, m *memory) {
				time.Sleep(forward.DefaultLifetime)
				m.refuse(nil, 0)
				m.calls()
				time.Sleep(24 * time.Hour)
			},
			want: nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				held, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				m.calls()
				m.refuse(c.err, 0)
				if err := held.Close(); !errors.Is(err, c.err) {
					t.Errorf("Close: %v", err)
				}
				c.then(t, f, m)
				synctest.Wait()
				if diff := cmp.Diff(c.want, m.calls()); diff != "" {
					t.Error(diff)
				}
				if n := len(m.live()); n != c.left {
					t.Errorf("the gateway has %d entries, want %d", n, c.left)
				}
				m.refuse(nil, 0)
			})
		})
	}
}

// A gateway that does not answer is asked for one pending deletion at a time. When one
// succeeds, the mappings that it may have broken are renewed.
func TestDebts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		var all []*forward.Mapping
		for _, opt := range []forward.Option{forward.TCP(8080), forward.TCP(8081), forward.TCP(8082), forward.UDP(8082)} {
			one, err := f.Enable(t.Context(), opt)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, one)
		}
		m.refuse(backends.ErrNoReply, 0)
		for _, one := range all[:3] {
			if err := one.Close(); err == nil {
				t.Error("closed, but the gateway is silent")
			}
		}
		synctest.Wait()
		m.calls()
		time.Sleep(1500 * time.Millisecond)
		if diff := cmp.Diff([]string{"unmap tcp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
		m.refuse(nil, 0)
		time.Sleep(10 * time.Second)
		want := []string{"unmap tcp 8081", "unmap tcp 8082", "renew udp 8082", "unmap tcp 8080"} // in turn
		calls := m.calls()
		slices.Sort(calls[min(2, len(calls)):]) // of two ports, at the same time
		if diff := cmp.Diff(want, calls); diff != "" {
			t.Error(diff)
		}
	})
}

// An old debt does not keep new ones waiting, and they are paid when there was
// none for a while.
func TestDebtsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		owe := func(port uint16) {
			t.Helper()
			held, err := f.Enable(t.Context(), forward.TCP(port))
			if err != nil {
				t.Fatal(err)
			}
			m.refuse(backends.ErrNoReply, 0)
			if err := held.Close(); err == nil {
				t.Error("closed, but the gateway is silent")
			}
		}
		owe(8080)
		time.Sleep(10 * time.Minute) // a minute between the tries, by now
		owe(8081)
		m.refuse(backends.ErrNoReply, 8081)
		time.Sleep(2 * time.Second)
		if n := len(m.live()); n != 1 {
			t.Errorf("%d entries, want that which the gateway is silent about", n)
		}
		m.refuse(nil, 0)
		time.Sleep(2 * time.Minute)
		owe(8082)
		m.refuse(nil, 0)
		time.Sleep(2 * time.Second)
		if n := len(m.live()); n != 0 {
			t.Errorf("%d entries, want none", n)
		}
		owe(8083)
		owe(8083)
		m.refuse(nil, 0)
		m.calls()
		time.Sleep(2 * time.Second)
		if diff := cmp.Diff([]string{"unmap tcp 8083"}, m.calls()); diff != "" {
			t.Errorf("owed twice: %s", diff)
		}
	})
}

// What a failed attempt got is deleted when the gateway answers again.
func TestGivenBackLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		m.set(func() {
			m.fail = func(op string, p backends.Protocol, _ uint16) error {
				switch {
				case op == "unmap":
					return backends.ErrNoReply
				case p == backends.UDP:
					return backends.ErrNotAuthorized
				}
				return nil
			}
		})
		if _, err := f.Enable(t.Context(), forward.Both(8080)); !errors.Is(err, backends.ErrNotAuthorized) {
			t.Fatal(err)
		}
		if n := len(m.live()); n != 1 {
			t.Fatalf("the gateway has %d entries", n)
		}
		m.set(func() { m.fail = nil })
		time.Sleep(2 * time.Second)
		if n := len(m.live()); n != 0 {
			t.Errorf("the gateway still has %d", n)
		}
	})
}
