package forward_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// recorder collects events as "kind port".
type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) record(e forward.Event) {
	port := uint16(0)
	if len(e.Grants) > 0 {
		port = e.Grants[0].External.Port()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprint(e.Kind, " ", port))
}

func (r *recorder) want(t *testing.T, events ...string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(events, r.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	r.events = nil
}

// Renewals come between a half and five eighths of what was granted, ask for
// the whole lifetime and the granted port, and no moment is without a mapping.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		m.limit, m.taken[8080] = time.Hour, true
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		for range 48 * 60 {
			time.Sleep(time.Minute)
			if len(m.live()) != 1 {
				t.Fatal("a moment without a mapping")
			}
		}
		m.mu.Lock()
		log, at := m.log, m.at
		m.mu.Unlock()
		for i := 1; i < len(log); i++ {
			if pause := at[i].Sub(at[i-1]); pause < 30*time.Minute || pause > 37*time.Minute+30*time.Second || log[i] != "renew tcp 8081" {
				t.Fatalf("%s after %v", log[i], pause)
			}
		}
		if len(log) < 48*60/38 {
			t.Errorf("%d requests in two days", len(log))
		}
		if next := got.Status().NextAttempt; next.Before(time.Now()) || next.After(got.Expires()) {
			t.Errorf("next try at %v, expires at %v", next, got.Expires())
		}
		events.want(t, "mapped 8081")
	})
}

// A mapping without an end is looked after: a gateway may forget it.
func TestPermanentKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(forward.Forever))
		if err != nil || !got.Expires().IsZero() {
			t.Fatal(got, err)
		}
		m.calls()
		time.Sleep(24 * time.Hour)
		if n := len(m.calls()); n < 24*60/23 || n > 24*60/20 {
			t.Errorf("asked for %d times in a day, want every twenty minutes", n)
		}
		m.set(func() { clear(m.table) })
		time.Sleep(23 * time.Minute)
		if len(m.live()) != 1 {
			t.Error("forgotten by the gateway, and not asked for again")
		}
		events.want(t, "mapped 8080")
	})
}

// A renewal that fails is tried again in ever shorter windows; the mapping is
// lost when its time is up, and asked for until it is back.
func TestRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() {
			m.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNoReply }
		})
		time.Sleep(59 * time.Minute)
		if !errors.Is(got.Err(), backends.ErrNoReply) || got.External().Port() != 8080 {
			t.Errorf("before its time is up: %v, error %v", got, got.Err())
		}
		if n := len(m.calls()); n < 4 || n > 12 {
			t.Errorf("%d requests in the first hour", n)
		}
		events.want(t, "mapped 8080", "failed 8080")
		changed := got.Changed()
		time.Sleep(2 * time.Minute)
		select {
		case <-changed:
		default:
			t.Error("Changed was not closed")
		}
		if got.External().IsValid() || len(got.Grants()) != 0 {
			t.Errorf("when its time is up: %v", got)
		}
		events.want(t, "lost 0", "failed 0")
		m.calls()
		time.Sleep(time.Hour)
		if n := len(m.calls()); n < 50 || n > 70 {
			t.Errorf("%d requests in an hour without, want about one a minute", n)
		}
		m.set(func() { m.fail = nil })
		time.Sleep(2 * time.Minute)
		if got.External().Port() != 8080 || got.Err() != nil {
			t.Errorf("back: %v, error %v", got, got.Err())
		}
		events.want(t, "restored 8080")
	})
}

// A loss is told when the time is up, although the gateway may answer yet, and
// the mapping is asked for anew without a pause.
func TestRunsOutUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{RequestTimeout: time.Hour, OnEvent: events.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(12*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		until := got.Expires()
		m.set(func() { m.block = true })
		time.Sleep(8 * time.Second)
		events.want(t, "mapped 8080")
		m.set(func() { m.block = false }) // the renewal under way has no answer all the same
		m.calls()
		time.Sleep(time.Until(until) - time.Nanosecond)
		events.want(t)
		time.Sleep(time.Nanosecond)
		events.want(t, "lost 0", "restored 8080")
		if diff := cmp.Diff([]string{"map tcp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
		if want := until.Add(12 * time.Second); !got.Expires().Equal(want) || got.Err() != nil {
			t.Errorf("expires %v, want %v; error %v", got.Expires(), want, got.Err())
		}
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.Both(8080))
		if err != nil {
			t.Fatal(err)
		}
		events.want(t, "mapped 8080")
		begin := time.Now()
		if s := got.Status(); !s.Since.Equal(begin) || s.Reason != "enabled" {
			t.Errorf("since %v, because %q", s.Since, s.Reason)
		}
		time.Sleep(time.Minute)
		m.calls()
		m.restart()
		synctest.Wait() // no time passes
		if s := got.Status(); !s.Since.Equal(begin.Add(time.Minute)) || s.Reason != "test" {
			t.Errorf("since %v, because %q", s.Since, s.Reason)
		}
		if len(m.live()) != 2 {
			t.Errorf("the gateway has %v", m.live())
		}
		events.want(t, "lost 0", "restored 8080")
		if diff := cmp.Diff([]string{"renew tcp 8080", "renew udp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}

		// A gateway that only announces is asked again; nothing has happened.
		m.changes <- backends.Change{Kind: backends.Announced}
		time.Sleep(10 * time.Second)
		if n := len(m.calls()); n != 2 {
			t.Errorf("%d requests after an announcement", n)
		}
		events.want(t)

		// A clock that runs wild causes one round in five seconds.
		for range 50 {
			m.changes <- backends.Change{Kind: backends.Restarted}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		if n := len(m.calls()); n < 4 || n > 8 {
			t.Errorf("%d requests after a storm of changes", n)
		}
	})
}

func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		changed, moved := got.Changed(), netip.MustParseAddr("45.45.45.99")
		m.set(func() { m.external, m.taken[8080] = moved, true })
		m.changes <- backends.Change{Kind: backends.AddressChanged}
		<-changed
		if want := netip.AddrPortFrom(moved, 8081); got.External().AddrPort != want {
			t.Errorf("External %v, want %v", got.External(), want)
		}
		events.want(t, "mapped 8080", "changed 8081")
	})
}

// Both stays one unit when a renewal grants another port to one of them.
func TestBothRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.Both(8080), forward.Lifetime(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.reserved = 7000 })
		time.Sleep(time.Hour)
		state := got.Grants()
		if len(state) != 2 || state[0].External.Port() != 7000 || state[1].External.Port() != 7000 {
			t.Errorf("granted %+v, want 7000 for both", state)
		}
		if n := len(m.live()); n != 2 {
			t.Errorf("the gateway has %v", m.live())
		}
	})
}

func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Once(), forward.Lifetime(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if entries, _ := f.Mappings(t.Context()); len(entries) != 1 {
			t.Errorf("entries %v", entries)
		}
		time.Sleep(2 * time.Hour)
		if entries, _ := f.Mappings(t.Context()); len(entries) != 0 || len(m.calls()) != 1 {
			t.Errorf("entries %v after its lifetime", entries)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8081), forward.Once()); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil || len(m.live()) != 1 {
			t.Errorf("Close: %v; the gateway has %v, want it left", err, m.live())
		}
	})
}

func TestBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		m.fail = always(backends.ErrNoReply)
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if got.External().IsValid() || got.Err() == nil {
			t.Errorf("%v, error %v", got, got.Err())
		}
		if n := len(m.calls()); n < 50 || n > 80 {
			t.Errorf("%d requests in the first hour", n)
		}
		m.set(func() { m.fail = nil })
		if err := got.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		events.want(t, "failed 0", "mapped 8080")
		if err := got.Close(); err != nil {
			t.Fatal(err)
		}
		if err := got.Wait(t.Context()); !errors.Is(err, forward.ErrClosed) {
			t.Errorf("Wait after Close: %v", err)
		}
		if err := got.Refresh(t.Context()); !errors.Is(err, forward.ErrClosed) {
			t.Errorf("Refresh after Close: %v", err)
		}
	})
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if err := f.Refresh(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		if left := time.Until(got.Expires()); left != time.Hour {
			t.Errorf("%v left after Refresh", left)
		}
		m.calls()
		if err := got.Refresh(t.Context(), forward.External(9090)); err != nil || got.External().Port() != 9090 {
			t.Errorf("Refresh to another port: %v, %v", got, err)
		}
		if n := len(m.live()); n != 1 {
			t.Errorf("the gateway has %v", m.live())
		}
		m.set(func() { m.taken[7070] = true })
		if err := got.Refresh(t.Context(), forward.External(7070), forward.Exact()); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("Refresh to a taken port: %v", err)
		}
		if got.External().Port() != 9090 || len(m.live()) != 1 {
			t.Errorf("after a refused change: %v; the gateway has %v", got, m.live())
		}
		for name, opt := range map[string]forward.Option{"protocol": forward.UDP(8080), "once": forward.Once(), "port": forward.External(0)} {
			if err := got.Refresh(t.Context(), opt); !errors.Is(err, backends.ErrInvalid) {
				t.Errorf("changing the %s: %v", name, err)
			}
		}
		if err := f.Refresh(t.Context(), forward.UDP(0)); !errors.Is(err, forward.ErrNoMapping) {
			t.Errorf("refreshing what is not there: %v", err)
		}
		time.Sleep(24 * time.Hour)
		if got.External().Port() != 9090 || len(m.live()) != 1 {
			t.Errorf("a day later: %v; the gateway has %v", got, m.live())
		}
	})
}

// What a callback does harms nobody.
func TestBadCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		release := make(chan struct{})
		n := 0
		f := forwarder(t, forward.Config{OnEvent: func(forward.Event) {
			if n++; n == 1 {
				panic("callback")
			}
			<-release
		}}, m)
		for port := uint16(8000); port < 8000+2000; port++ {
			if _, err := f.Enable(t.Context(), forward.TCP(port)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(24 * time.Hour)
		if live := len(m.live()); live != 2000 {
			t.Errorf("%d mappings live", live)
		}
		close(release)
		synctest.Wait()
		if err := f.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if n < 1000 || n > 2000 {
			t.Errorf("%d events delivered, want the bound of waiting ones to hold", n)
		}
	})
}

func TestDisable(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	ctx := t.Context()
	if err := f.Disable(ctx); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("Disable of nothing: %v", err)
	}
	for _, opts := range [][]forward.Option{
		{forward.TCP(1001), forward.Description("a")},
		{forward.UDP(1001), forward.Description("b")},
		{forward.Both(1002), forward.Description("a")},
		{forward.TCP(1003), forward.External(2003)},
		{forward.TCP(1004)},
	} {
		if _, err := f.Enable(ctx, opts...); err != nil {
			t.Fatal(err)
		}
	}
	held := func() string {
		entries, err := f.Mappings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, e := range entries {
			if !e.Enabled || !e.Ours {
				t.Errorf("entry %+v", e)
			}
			out = append(out, fmt.Sprintf("%v%d", e.Mapping.Protocol, e.Mapping.Internal.Port()))
		}
		return strings.Join(out, " ")
	}
	steps := []struct {
		do   func() error
		want string
	}{
		{func() error { return nil }, "tcp1001 udp1001 tcp1002 udp1002 tcp1003 tcp1004"},
		{func() error { return f.Disable(ctx) }, "tcp1001 udp1001 tcp1002 udp1002 tcp1003"},
		{func() error { return f.Disable(ctx, forward.UDP(0)) }, "tcp1001 tcp1002 udp1002 tcp1003"},
		{func() error { return f.Disable(ctx, forward.External(2003)) }, "tcp1001 tcp1002 udp1002"},
		{func() error { return wantNone(f.Disable(ctx, forward.TCP(1002))) }, "tcp1001 tcp1002 udp1002"},
		{func() error { return wantNone(f.Disable(ctx, forward.TCP(1001), forward.Description("b"))) }, "tcp1001 tcp1002 udp1002"},
		{func() error { n, err := f.DisableAll(ctx, forward.Description("a")); return wantN(n, 2, err) }, ""},
		{func() error { n, err := f.DisableAll(ctx); return wantN(n, 0, err) }, ""},
	}
	for i, step := range steps {
		if err := step.do(); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
		if got := held(); got != step.want {
			t.Errorf("step %d: held %q, want %q", i, got, step.want)
		}
	}
	if left := m.live(); len(left) != 0 {
		t.Errorf("the gateway has %v", left)
	}
	if err := f.Disable(ctx, nil); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("nil selector: %v", err)
	}
	if _, err := f.MappingAt(ctx, 0); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("MappingAt: %v", err)
	}
}

func wantNone(err error) error {
	if errors.Is(err, forward.ErrNoMapping) {
		return nil
	}
	return fmt.Errorf("%w, want ErrNoMapping", err)
}

func wantN(got, want int, err error) error {
	if err != nil || got != want {
		return fmt.Errorf("%d, %w; want %d", got, err, want)
	}
	return nil
}

// A deletion that fails is reported, and the mapping is no longer ours.
func TestDisableFails(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	defer f.Close()
	for port := range uint16(3) {
		if _, err := f.Enable(t.Context(), forward.TCP(1001+port)); err != nil {
			t.Fatal(err)
		}
	}
	m.set(func() {
		m.fail = func(op string, _ backends.Protocol, port uint16) error {
			if op == "unmap" && port == 1002 {
				return backends.ErrNotAuthorized
			}
			return nil
		}
	})
	n, err := f.DisableAll(t.Context())
	if n != 2 || !errors.Is(err, backends.ErrNotAuthorized) || !strings.Contains(err.Error(), "lifetime") {
		t.Errorf("DisableAll: %d, %v", n, err)
	}
	if err := f.Disable(t.Context()); !errors.Is(err, forward.ErrNoMapping) {
		t.Errorf("still held: %v", err)
	}
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		got, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _ = f.Close() })
		}
		wg.Wait()
		if len(m.live()) != 0 || !slices.Equal(m.calls(), []string{"map tcp 8080", "unmap tcp 8080"}) {
			t.Errorf("the gateway has %v", m.live())
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, forward.ErrClosed) {
			t.Errorf("Enable after Close: %v", err)
		}
		if err := got.Close(); err != nil {
			t.Errorf("closing a closed mapping: %v", err)
		}
	})
}

// A gateway that answers no more cannot keep Close, or what is under way.
func TestCloseDeadGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		for port := range uint16(100) {
			if _, err := f.Enable(t.Context(), forward.TCP(1001+port)); err != nil {
				t.Fatal(err)
			}
		}
		m.set(func() { m.block = true })
		stuck := make(chan error, 1)
		go func() {
			_, err := f.Enable(t.Context(), forward.TCP(8080))
			stuck <- err
		}()
		synctest.Wait()
		begun := time.Now()
		if err := f.Close(); !errors.Is(err, backends.ErrNoReply) || time.Since(begun) != 2*time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(begun))
		}
		if err := <-stuck; !errors.Is(err, forward.ErrClosed) {
			t.Errorf("a call under way: %v, want ErrClosed", err)
		}
	})
}

func TestShutdownReports(t *testing.T) {
	m := newMemory()
	f := forwarder(t, forward.Config{}, m)
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	m.set(func() {
		m.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNotAuthorized }
	})
	if err := f.Shutdown(t.Context()); !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("Shutdown: %v", err)
	}
}

// A change that is answered with a refusal is not left to the old lease: the
// gateway's line may be up a moment later.
func TestDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() {
			m.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNetworkFailure }
			m.table = map[key]backends.Mapping{}
		})
		m.changes <- backends.Change{Kind: backends.Announced}
		time.Sleep(3 * time.Second)
		m.set(func() { m.fail = nil })
		time.Sleep(5 * time.Second)
		if len(m.live()) != 1 || got.Err() != nil {
			t.Errorf("the gateway has %v, error %v", m.live(), got.Err())
		}
	})
}

// A change wakes a mapping that was refused from the first, where somebody waits
// for it in the background.
func TestRefusedThenAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.set(func() {
			m.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNotAuthorized }
		})
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		got, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // the pauses are long by now
		m.set(func() { m.fail = nil })
		m.changes <- backends.Change{Kind: backends.Announced}
		synctest.Wait() // no time passes
		if len(m.live()) != 1 || got.Err() != nil {
			t.Errorf("the gateway has %v, error %v", m.live(), got.Err())
		}
	})
}

// What was granted since the gateway lost its state is not asked for again.
func TestGrantedSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.UDP(8080)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		lost := time.Now()
		time.Sleep(time.Second)
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		m.calls()
		time.Sleep(time.Second)
		m.changes <- backends.Change{Kind: backends.Restarted, Since: lost}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew udp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
		if err := f.Refresh(t.Context(), forward.TCP(8080)); err != nil { // which is the elder now
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew tcp 8080", "renew udp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
	})
}

// A restart between the grants of a unit's two protocols turns their order around,
// for good.
func TestRestartInBetween(t *testing.T) {
	for name, late := range map[string]bool{"noticed at once": false, "noticed after": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				oneByOne(t, f, forward.TCP(9)) // and so it is watched
				m.set(func() {
					m.queues = true
					m.fail = func(_ string, p backends.Protocol, _ uint16) error {
						if p == backends.UDP {
							time.Sleep(2 * time.Second)
						}
						return nil
					}
				})
				enabled := make(chan error, 1)
				go func() {
					_, err := f.Enable(t.Context(), forward.Both(8080), forward.Lifetime(time.Hour))
					enabled <- err
				}()
				time.Sleep(time.Second)
				lost := time.Now()
				if late {
					if err := <-enabled; err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				m.calls()
				m.changes <- backends.Change{Kind: backends.Restarted, Since: lost}
				if !late {
					if err := <-enabled; err != nil {
						t.Fatal(err)
					}
				}
				for _, after := range []time.Duration{10 * time.Second, time.Hour} {
					time.Sleep(after)
					var order []string
					for _, call := range m.calls() {
						if strings.HasSuffix(call, " 8080") {
							order = append(order, call)
						}
					}
					if len(order) < 2 || len(order)%2 != 0 {
						t.Fatalf("asked for %q", order)
					}
					for i, call := range order {
						if want := []string{"renew udp 8080", "renew tcp 8080"}[i%2]; call != want {
							t.Errorf("call %d of %q, want %q", i, order, want)
						}
					}
				}
			})
		})
	}
}

// oneByOne enables mappings a second apart.
func oneByOne(t *testing.T, f *forward.Forwarder, opts ...forward.Option) {
	t.Helper()
	for _, opt := range opts {
		if _, err := f.Enable(t.Context(), opt); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
}

// Siblings that the gateway has lost are back one after the other, at once.
func TestLostSiblings(t *testing.T) {
	for name, told := range map[string]bool{"it tells when": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				oneByOne(t, f, forward.UDP(8080), forward.TCP(8080))
				m.calls()
				change := backends.Change{Kind: backends.Restarted}
				if told {
					change.Since = time.Now()
				}
				time.Sleep(time.Second)
				m.changes <- change
				synctest.Wait()
				if diff := cmp.Diff([]string{"renew udp 8080", "renew tcp 8080"}, m.calls()); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// What the gateway granted after a restart, but before it was noticed, is the elder
// of what is asked for then, whenever the answer came.
func TestGrantedWhileNoticed(t *testing.T) {
	for name, c := range map[string]struct{ late, both, queues bool }{
		"answered before":      {},
		"answered after":       {late: true},
		"sent after":           {late: true, queues: true},
		"both answered before": {both: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				oneByOne(t, f, forward.TCP(8080), forward.UDP(8080))
				m.set(func() {
					m.queues = c.queues
					m.fail = func(op string, _ backends.Protocol, _ uint16) error {
						if c.late && op == "renew" {
							time.Sleep(2 * time.Second)
						}
						return nil
					}
				})
				refreshed := make(chan error, 1)
				lost := time.Now()
				go func() { refreshed <- f.Refresh(t.Context(), forward.UDP(8080)) }()
				time.Sleep(time.Second)
				if c.both {
					if err := f.Refresh(t.Context(), forward.TCP(8080)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				m.changes <- backends.Change{Kind: backends.Restarted, Since: lost}
				if err := <-refreshed; err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute) // siblings wait for each other
				m.set(func() { m.fail = nil })
				m.calls()
				if err := f.Refresh(t.Context(), forward.TCP(8080)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if diff := cmp.Diff([]string{"renew tcp 8080"}, m.calls()); diff != "" {
					t.Errorf("UDP is the elder: %s", diff)
				}
				if err := f.Refresh(t.Context(), forward.UDP(8080)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if diff := cmp.Diff([]string{"renew udp 8080", "renew tcp 8080"}, m.calls()); diff != "" {
					t.Errorf("TCP is the younger: %s", diff)
				}
			})
		})
	}
}

// What was granted before a restart is lost with it, also where the answer comes
// after the notice.
func TestGrantedBefore(t *testing.T) {
	for name, anew := range map[string]bool{"anew": true, "again": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory()
				f := forwarder(t, forward.Config{}, m)
				defer f.Close()
				if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
					t.Fatal(err)
				}
				ask := func() error {
					_, err := f.Enable(t.Context(), forward.UDP(8080))
					return err
				}
				if !anew {
					if err := ask(); err != nil {
						t.Fatal(err)
					}
					ask = func() error { return f.Refresh(t.Context(), forward.UDP(8080)) }
				}
				time.Sleep(time.Second)
				m.set(func() {
					m.fail = func(_ string, p backends.Protocol, _ uint16) error {
						if p == backends.UDP {
							time.Sleep(2 * time.Second)
						}
						return nil
					}
				})
				answered := make(chan error, 1)
				go func() { answered <- ask() }()
				time.Sleep(time.Second)
				m.changes <- backends.Change{Kind: backends.Restarted, Since: time.Now()}
				if err := <-answered; err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute) // siblings wait for each other
				m.calls()
				if err := f.Refresh(t.Context(), forward.UDP(8080)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if diff := cmp.Diff([]string{"renew udp 8080"}, m.calls()); diff != "" {
					t.Errorf("TCP is the elder: %s", diff)
				}
			})
		})
	}
}

// A change wakes a mapping that had expired, too.
func TestRestartAfterExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, events := newMemory(), &recorder{}
		f := forwarder(t, forward.Config{OnEvent: events.record}, m)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.Lifetime(time.Minute)); err != nil {
			t.Fatal(err)
		}
		m.set(func() {
			m.fail = func(string, backends.Protocol, uint16) error { return backends.ErrNoReply }
		})
		time.Sleep(time.Hour)
		events.want(t, "mapped 8080", "failed 8080", "lost 0", "failed 0")
		m.set(func() { m.fail = nil })
		m.restart()
		events.want(t, "restored 8080") // no time passes
	})
}

// Another lifetime is asked for in place, unless somebody else holds the mapping
// for the one they agreed on.
func TestRefreshLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		enable := func(d time.Duration) (*forward.Mapping, error) {
			return f.Enable(t.Context(), forward.Both(8080), forward.Lifetime(d))
		}
		got, err := enable(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		m.calls()
		if err := got.Refresh(t.Context(), forward.Lifetime(4*time.Hour)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew tcp 8080", "renew udp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
		if d := got.Grants()[1].Lifetime; d != 4*time.Hour {
			t.Errorf("granted for %v", d)
		}
		if _, err := enable(time.Hour); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("on the old terms: %v", err)
		}
		if _, err := enable(4 * time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := got.Refresh(t.Context(), forward.Lifetime(time.Hour)); !errors.Is(err, backends.ErrConflict) {
			t.Errorf("behind another's back: %v", err)
		}
		if err := got.Refresh(t.Context()); err != nil || got.Grants()[0].Lifetime != 4*time.Hour {
			t.Errorf("as before: %v, %v", err, got.Grants())
		}
	})
}

// Some gateways break one protocol's mapping when that of another on the same
// internal port, granted earlier, is renewed, or any is deleted: it is renewed
// right after.
func TestSiblings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		f := forwarder(t, forward.Config{}, m)
		defer f.Close()
		tcp, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		for _, opt := range []forward.Option{forward.UDP(8080), forward.TCP(9090)} {
			time.Sleep(time.Second)
			if _, err := f.Enable(t.Context(), opt); err != nil {
				t.Fatal(err)
			}
		}
		m.calls()
		if err := tcp.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew tcp 8080", "renew udp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
		if err := f.Refresh(t.Context(), forward.UDP(8080)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"renew udp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
		m.changes <- backends.Change{Kind: backends.Announced}
		synctest.Wait()
		slow := m.calls() // in which order of the ports, nobody knows
		if i := slices.Index(slow, "renew udp 8080"); len(slow) != 3 || slices.Index(slow, "renew tcp 8080") > i {
			t.Error(slow)
		}
		if err := tcp.Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"unmap tcp 8080", "renew udp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
		if tcp, err = f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		m.calls()
		if err := tcp.Close(); err != nil { // the younger one now
			t.Fatal(err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"unmap tcp 8080", "renew udp 8080"}, m.calls()); diff != "" {
			t.Error(diff)
		}
	})
}
