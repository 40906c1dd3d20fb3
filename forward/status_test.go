package forward_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// Status goes from pending over active and lost to closed, and Done is closed at the end.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		refuse := true
		m.fail = func(op string, _ backends.Protocol, _ uint16) error {
			if refuse && op != "unmap" {
				return backends.ErrNoResources
			}
			return nil
		}
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
		if err != nil {
			t.Fatal(err)
		}
		want := func(state forward.State, check func(s forward.Status) bool) {
			t.Helper()
			synctest.Wait()
			s := got.Status()
			if s.State != state || !check(s) || s.External != got.External() || s.Internal != got.Internal() || s.Backend != got.Backend() ||
				s.Gateway != got.Gateway() || !s.Expires.Equal(got.Expires()) || fmt.Sprint(s.Err) != fmt.Sprint(got.Err()) || len(s.Grants) != len(got.Grants()) {
				t.Errorf("%+v, want it %v", s, state)
			}
		}
		done := got.Done()
		want(forward.StatePending, func(s forward.Status) bool {
			return errors.Is(s.Err, backends.ErrNoResources) && s.NextAttempt.After(time.Now()) && s.Since.IsZero() &&
				s.External.String() == "not mapped" && s.Internal.Port() == 8080 && len(s.Grants) == 0
		})
		m.mu.Lock()
		refuse = false
		m.mu.Unlock()
		time.Sleep(time.Minute)
		want(forward.StateActive, func(s forward.Status) bool {
			return s.Err == nil && s.External.String() == "45.45.45.1:8080" && s.Backend == "memory" && s.Reason == "enabled" && len(s.Grants) == 1 &&
				s.Expires.After(s.NextAttempt) && s.NextAttempt.After(time.Now())
		})
		m.mu.Lock()
		refuse = true
		m.mu.Unlock()
		time.Sleep(3 * time.Hour)
		want(forward.StateLost, func(s forward.Status) bool {
			return s.Err != nil && s.External.IsZero() && len(s.Grants) == 0 && !s.Since.IsZero() && s.Backend == ""
		})
		select {
		case <-done:
			t.Error("Done before Close")
		default:
		}
		if err := got.Close(); err != nil {
			t.Error(err)
		}
		want(forward.StateClosed, func(s forward.Status) bool { return s.NextAttempt.IsZero() })
		<-done
		<-got.Done()
	})
}

// Done is closed by whatever closes the mapping.
func TestDone(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, f *forward.Forwarder, m *forward.Mapping) error{
		"Close":    func(_ *testing.T, _ *forward.Forwarder, m *forward.Mapping) error { return m.Close() },
		"Disable":  func(t *testing.T, f *forward.Forwarder, _ *forward.Mapping) error { return f.Disable(t.Context()) },
		"Shutdown": func(_ *testing.T, f *forward.Forwarder, _ *forward.Mapping) error { return f.Close() },
		"Leave":    func(_ *testing.T, _ *forward.Forwarder, m *forward.Mapping) error { m.Leave(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := forwarder(t, forward.Config{}, newMemory())
				defer f.Close()
				m, err := f.Enable(t.Context(), forward.TCP(8080))
				if err != nil {
					t.Fatal(err)
				}
				before := m.Done()
				if err := end(t, f, m); err != nil {
					t.Error(err)
				}
				<-before // else the bubble is deadlocked
				<-m.Done()
			})
		})
	}
}

// What is left stays on the gateway, also after Close, and is not renewed.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{Lifetime: time.Hour}, m)
		for _, opts := range [][]forward.Option{{forward.TCP(8080)}, {forward.TCP(9090), forward.Lifetime(forward.Forever)}} {
			got, err := f.Enable(t.Context(), opts...)
			if err != nil {
				t.Fatal(err)
			}
			got.Leave()
			got.Leave()
			if err := got.Close(); err != nil {
				t.Errorf("Close after Leave: %v", err)
			}
			if err := got.Refresh(t.Context()); !errors.Is(err, forward.ErrClosed) {
				t.Errorf("Refresh after Leave: %v", err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if got := m.rows(); !slices.Equal(got, []string{"tcp 8080→8080", "tcp 9090→9090"}) {
			t.Errorf("the gateway has %v", got)
		}
		time.Sleep(2 * time.Hour)
		if got := m.rows(); !slices.Equal(got, []string{"tcp 9090→9090"}) {
			t.Errorf("two hours later the gateway has %v", got)
		}
	})
}

// EventFailed comes at the first failure and when the reason changes, not at each retry,
// and to the callback of the mapping as well as to Config.OnEvent.
func TestEventFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, all := newMemory(), &recorder{}
		failure := backends.ErrNoResources
		m.fail = func(string, backends.Protocol, uint16) error { return failure }
		own := &recorder{}
		var reasons []string
		f := forwarder(t, forward.Config{OnEvent: all.record}, m)
		defer f.Close()
		_, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background(), forward.OnChange(func(e forward.Event) {
			own.record(e)
			reasons = append(reasons, strings.SplitN(e.Reason, ":", 2)[0])
		}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(9090)); err == nil { // whose error the caller has
			t.Error("Enable succeeded")
		}
		time.Sleep(time.Hour)
		all.want(t, "failed 0")
		own.want(t, "failed 0")
		m.mu.Lock()
		failure = backends.ErrNotAuthorized
		m.mu.Unlock()
		time.Sleep(time.Hour)
		own.want(t, "failed 0")
		m.mu.Lock()
		failure = nil
		m.mu.Unlock()
		time.Sleep(time.Hour)
		own.want(t, "mapped 8080")
		m.mu.Lock()
		failure = backends.ErrNetworkFailure
		m.mu.Unlock()
		time.Sleep(4 * time.Hour)
		own.want(t, "failed 8080", "lost 0", "failed 0")
		if want := []string{"the gateway is out of resources", "the gateway refuses", "enabled", "memory", "no reply from the gateway before the mapping ran out", "the gateway has no working connection to the internet"}; !slices.Equal(reasons, want) {
			t.Errorf("reasons %q, want %q", reasons, want)
		}
	})
}

// A panic in OnChange harms nothing, and another mapping's events do not reach it.
func TestOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, own := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(9090), forward.OnChange(func(forward.Event) { panic("test") })); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.OnChange(own.record)); err != nil {
			t.Fatal(err)
		}
		m.restart()
		own.want(t, "mapped 8080", "lost 0", "restored 8080")
	})
}

// RenewEvery renews sooner than half of the lifetime, and never later.
func TestRenewEvery(t *testing.T) {
	for every, want := range map[time.Duration]int{10 * time.Minute: 12, 10 * time.Hour: 3} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			m.limit = time.Hour
			f := forwarder(t, forward.Config{}, m)
			defer f.Close()
			got, err := f.Enable(t.Context(), forward.TCP(8080), forward.RenewEvery(every))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2*time.Hour + time.Second)
			if n := len(m.calls()) - 1; n != want {
				t.Errorf("%d renewals in two hours every %v, want %d", n, every, want)
			}
			if err := got.Refresh(t.Context(), forward.RenewEvery(time.Minute)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10*time.Minute + time.Second)
			if n := len(m.calls()) - 1; n != 10 {
				t.Errorf("%d renewals in ten minutes after Refresh", n)
			}
		})
	}
}

// With Exact, a gateway that gives another external address is refused.
func TestExternalAddr(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, other := newMemory(), netip.MustParseAddr("45.45.45.2")
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.ExternalAddr(other), forward.Exact()); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("another address: %v", err)
		}
		if len(m.live()) != 0 {
			t.Errorf("the gateway has %v", m.rows())
		}
		for _, opts := range [][]forward.Option{
			{forward.TCP(8080), forward.ExternalAddr(other)}, {forward.TCP(9090), forward.ExternalAddr(external), forward.Exact()},
		} {
			if _, err := f.Enable(t.Context(), opts...); err != nil {
				t.Error(err)
			}
		}
	})
}
