package forward_test

import (
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// TestEventFailed checks that EventFailed is sent at the first failure and when the
// reason changes, not at each retry. It is sent to the callback of the mapping and to
// Config.OnEvent.
func TestEventFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, allEvents := newFakeGateway(), &eventRecorder{}
		failure := backends.ErrNoResources
		gw.fail = func(string, backends.Protocol, uint16) error { return failure }
		ownEvents := &eventRecorder{}
		var reasons []string
		f := newForwarder(t, forward.Config{OnEvent: allEvents.record}, gw)
		defer f.Close()
		_, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background(), forward.OnChange(func(e forward.Event) {
			ownEvents.record(e)
			reasons = append(reasons, strings.SplitN(e.Reason, ":", 2)[0])
		}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(9090)); err == nil { // it causes no event, because the caller gets the error
			t.Error("Enable succeeded")
		}
		time.Sleep(time.Hour)
		allEvents.want(t, "failed 0")
		ownEvents.want(t, "failed 0")
		gw.mu.Lock()
		failure = backends.ErrNotAuthorized
		gw.mu.Unlock()
		time.Sleep(time.Hour)
		ownEvents.want(t, "failed 0")
		gw.mu.Lock()
		failure = nil
		gw.mu.Unlock()
		time.Sleep(time.Hour)
		ownEvents.want(t, "mapped 8080")
		gw.mu.Lock()
		failure = backends.ErrNetworkFailure
		gw.mu.Unlock()
		time.Sleep(4 * time.Hour)
		ownEvents.want(t, "failed 8080", "lost 0", "failed 0")
		if want := []string{"the gateway is out of resources", "the gateway refuses", "enabled", "memory", "no reply from the gateway before the mapping expired", "the gateway has no working connection to the internet"}; !slices.Equal(reasons, want) {
			t.Errorf("reasons %q, want %q", reasons, want)
		}
	})
}

// TestOnChange checks that a panic in OnChange has no effect, and that OnChange does not
// receive events of other mappings.
func TestOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		f := newForwarder(t, forward.Config{}, gw)
		defer f.Close()
		if _, err := f.Enable(t.Context(), forward.TCP(9090), forward.OnChange(func(forward.Event) { panic("test") })); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Enable(t.Context(), forward.TCP(8080), forward.OnChange(events.record)); err != nil {
			t.Fatal(err)
		}
		gw.restart()
		events.want(t, "mapped 8080", "lost 0", "restored 8080")
	})
}

// TestEventQueueBounded checks that calls do not wait while OnEvent blocks, and that the
// number of queued events is limited. OnEvent receives the newest event.
func TestEventQueueBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const changes = 5000
		gw := newFakeGateway()
		blocked := make(chan struct{})
		var got []forward.Event
		f := newForwarder(t, forward.Config{OnEvent: func(e forward.Event) {
			<-blocked
			got = append(got, e)
		}}, gw)
		defer f.Close()
		mapping, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		for i := range changes {
			gw.set(func() { gw.external = netip.AddrFrom4([4]byte{45, 45, byte(i >> 8), byte(i)}) })
			if err := mapping.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		close(blocked)
		synctest.Wait()
		if n := len(got); n == 0 || n > changes/2 {
			t.Fatalf("%d changes while OnEvent blocked, and %d events afterwards; want a limited number", changes, n)
		}
		if last := got[len(got)-1]; len(last.Grants) != 1 || last.Grants[0].External != mapping.External().AddrPort {
			t.Errorf("the last event reports %v, the mapping is %v", last.Grants, mapping)
		}
	})
}

// TestCallbackPanicsAndBlocks checks that a callback that panics or blocks does not
// affect the mappings.
func TestCallbackPanicsAndBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		release := make(chan struct{})
		n := 0
		f := newForwarder(t, forward.Config{OnEvent: func(forward.Event) {
			if n++; n == 1 {
				panic("callback")
			}
			<-release
		}}, gw)
		for port := uint16(8000); port < 8000+2000; port++ {
			if _, err := f.Enable(t.Context(), forward.TCP(port)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(24 * time.Hour)
		if live := len(gw.live()); live != 2000 {
			t.Errorf("the gateway has %d mappings, want 2000", live)
		}
		close(release)
		synctest.Wait()
		if err := f.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if n < 1000 || n > 2000 {
			t.Errorf("%d events delivered, want a limited number", n)
		}
	})
}

// TestEventOrder checks that events are delivered in the order in which they happened,
// even if the goroutine that causes the first event is delayed before it has finished.
func TestEventOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		handler := &blockingHandler{text: "mapped", release: make(chan struct{})}
		f := newForwarder(t, forward.Config{OnEvent: events.record, Logger: slog.New(handler)}, gw)
		defer f.Close()
		enabled := make(chan error, 1)
		go func() {
			_, err := f.Enable(t.Context(), forward.TCP(8080))
			enabled <- err
		}()
		synctest.Wait() // the mapping is granted, and its event is being logged
		gw.restart()
		synctest.Wait()
		close(handler.release)
		if err := <-enabled; err != nil {
			t.Fatal(err)
		}
		events.want(t, "mapped 8080", "lost 0", "restored 8080")
	})
}

// TestEventOrderRace checks the order of events without a logger that blocks. A restart
// that the gateway announces and a renewal cause one event each, at about the same time.
func TestEventOrderRace(t *testing.T) {
	// With more threads than processors, each may be preempted at any point.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	const duration = 4 * time.Second
	for start := time.Now(); time.Since(start) < duration && !t.Failed(); {
		raceEvents(t)
	}
}

// raceEvents causes few events, so that none of them is dropped.
func raceEvents(t *testing.T) {
	t.Helper()
	gw, events := newFakeGateway(), newEventChecker()
	f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		gw.changes <- backends.Change{Kind: backends.Restarted, Reason: "test"}
		for range 8 {
			if err := m.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if problems := events.found(); len(problems) > 0 {
			t.Fatal(problems[0])
		}
	}
}
