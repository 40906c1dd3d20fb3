package forward_test

import (
	"log/slog"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// Events are delivered in the order in which they happened, also if the goroutine
// that causes the first one is held up before it has finished.
func TestEventOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway, events := newMemory(), &recorder{}
		handler := &blocking{text: "mapped", release: make(chan struct{})}
		f := forwarder(t, forward.Config{OnEvent: events.record, Logger: slog.New(handler)}, gateway)
		defer f.Close()
		enabled := make(chan error, 1)
		go func() {
			_, err := f.Enable(t.Context(), forward.TCP(8080))
			enabled <- err
		}()
		synctest.Wait() // the mapping is granted, and its event is being logged
		gateway.restart()
		synctest.Wait()
		close(handler.release)
		if err := <-enabled; err != nil {
			t.Fatal(err)
		}
		events.want(t, "mapped 8080", "lost 0", "restored 8080")
	})
}

// The same without a logger that blocks: a restart that the gateway announces and a
// renewal cause one event each, at about the same time.
func TestEventOrderInRaces(t *testing.T) {
	// More threads than processors: any of them may be preempted anywhere.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	const lasts = 8 * time.Second
	for begin := time.Now(); time.Since(begin) < lasts && !t.Failed(); {
		raceEvents(t)
	}
}

// raceEvents causes so few events that none of them is dropped.
func raceEvents(t *testing.T) {
	t.Helper()
	gateway, events := newMemory(), newChronicle()
	f := forwarder(t, forward.Config{OnEvent: events.record}, gateway)
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		gateway.changes <- backends.Change{Kind: backends.Restarted, Reason: "test"}
		for range 8 {
			if err := m.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if wrong := events.errors(); len(wrong) > 0 {
			t.Fatal(wrong[0])
		}
	}
}

// errors returns what made no sense so far.
func (c *chronicle) errors() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wrong
}
