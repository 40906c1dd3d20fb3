package gateway

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wait is the bound of a probe.
const wait = 3 * time.Second

// named is a backend that is only chosen.
type fakeBackend struct {
	backends.Backend
	name string
}

func (n *fakeBackend) String() string { return n.name }
func (n *fakeBackend) Close() error   { return nil }

// answers is a probe that comes to err after a while; a negative while never.
type probeReply struct {
	after time.Duration
	err   error
}

// asked records which backends were asked.
type probeLog struct {
	mu    sync.Mutex
	names []string
}

func (l *probeLog) add(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names = append(l.names, name)
}

func (a probeReply) probe(log *probeLog, name string) func(context.Context) error {
	return func(ctx context.Context) error {
		log.add(name)
		if a.after < 0 {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		t := time.NewTimer(a.after)
		defer t.Stop()
		select {
		case <-t.C:
			return a.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// silentSink ignores what it is told.
type errorSink struct{ Sink }

func (errorSink) Handler() slog.Handler { return slog.DiscardHandler }

func (errorSink) CombineErrors(attempts []error, _ bool) error { return errors.Join(attempts...) }

// join returns a client of an owner with backends that answer as said. The last one is
// searched for if searched is set. The names are a, b and so on.
func join(t *testing.T, log *probeLog, searched bool, probes ...probeReply) *Client {
	t.Helper()
	var specs []BackendConfig
	for i, a := range probes {
		name := string(rune('a' + i))
		probe := a.probe(log, name)
		specs = append(specs, BackendConfig{Ready: &fakeBackend{name: name}, probe: &probe, search: searched && i == len(probes)-1})
	}
	c, err := NewRegistry(Jitter).Join(Key{}, specs, errorSink{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Discard)
	return c
}

// Which of three backends is chosen, when, and which were asked for it.
func TestChoose(t *testing.T) {
	const ms = time.Millisecond
	yes := func(d time.Duration) probeReply { return probeReply{d, nil} }
	silent, refuses := probeReply{-1, nil}, probeReply{0, backends.ErrNoReply}
	for name, test := range map[string]struct {
		candidates []probeReply
		chosen     string // "": none
		after      time.Duration
		asked      string
		searched   bool // the last
	}{
		"the first at once":              {[]probeReply{yes(ms), yes(ms), yes(ms)}, "a", ms, "a", false},
		"the first, a little late":       {[]probeReply{yes(100 * ms), yes(ms), yes(ms)}, "a", 100 * ms, "a b c", false},
		"the first, too late":            {[]probeReply{yes(150 * ms), yes(ms), yes(ms)}, "b", 101 * ms, "a b c", false},
		"the first refuses":              {[]probeReply{refuses, yes(ms), yes(ms)}, "b", ms, "a b", false},
		"the first but refusing to map":  {[]probeReply{{ms, backends.ErrNotAuthorized}, yes(ms), yes(ms)}, "a", ms, "a", false},
		"the third alone":                {[]probeReply{refuses, refuses, yes(ms)}, "c", ms, "a b c", false},
		"the third, of silent ones":      {[]probeReply{silent, silent, yes(ms)}, "c", 151 * ms, "a b c", false},
		"the third, late":                {[]probeReply{silent, silent, yes(time.Second)}, "c", 1100 * ms, "a b c", false},
		"the second, later than a third": {[]probeReply{silent, yes(50 * ms), yes(ms)}, "b", 151 * ms, "a b c", false},
		"none":                           {[]probeReply{silent, silent, silent}, "", wait, "a b c", false},
		"all refuse":                     {[]probeReply{refuses, refuses, refuses}, "", 0, "a b c", false},
		"before a search begins":         {[]probeReply{yes(24 * ms), yes(ms), yes(ms)}, "a", 24 * ms, "a", true},
		"when a search has begun":        {[]probeReply{yes(26 * ms), yes(ms), yes(ms)}, "a", 26 * ms, "a c", true},
		"found by a search":              {[]probeReply{silent, silent, yes(ms)}, "c", 250 * ms, "a b c", true},
		"found by a search at once":      {[]probeReply{refuses, refuses, yes(ms)}, "c", ms, "a b c", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log probeLog
				c := join(t, &log, test.searched, test.candidates...)
				begin := time.Now()
				err := c.Probe(t.Context(), wait)
				if took := time.Since(begin); took != test.after {
					t.Errorf("took %v, want %v", took, test.after)
				}
				if (err == nil) != (test.chosen != "") || err != nil && !errors.Is(err, backends.ErrNoReply) {
					t.Fatalf("Probe: %v", err)
				}
				if err == nil && c.Available()[0].name != test.chosen {
					t.Errorf("chose %v, want %s", c.Available()[0], test.chosen)
				}
				synctest.Wait()
				slices.Sort(log.names)
				if got := strings.Join(log.names, " "); got != test.asked {
					t.Errorf("asked %s, want %s", got, test.asked)
				}
			})
		})
	}
}

// A backend that a probe did not wait for is asked when it is needed, and once. If its
// caller gives up, nothing is known of it.
func TestEnsure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log probeLog
		c := join(t, &log, false, probeReply{time.Second, backends.ErrMalformed})
		b := c.Backends()[0]
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := c.EnsureProbed(ctx, b, wait); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(b.probeErr, errNotProbed) {
			t.Errorf("with a short deadline: %v, verdict %v", err, b.probeErr)
		}
		for range 2 {
			if err := c.EnsureProbed(t.Context(), b, wait); !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("Ensure: %v", err)
			}
		}
		if len(log.names) != 2 {
			t.Errorf("asked %v", log.names)
		}
	})
}

// A backend that failed, beside another that answered, is asked again later: not at each
// call, and not never.
func TestFailedProbeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log probeLog
		c := join(t, &log, false, probeReply{0, backends.ErrNoReply}, probeReply{0, nil})
		if err := c.Probe(t.Context(), wait); err != nil {
			t.Fatal(err)
		}
		failed := c.Backends()[0]
		for range 10 {
			if err := c.EnsureProbed(t.Context(), failed, wait); !errors.Is(err, backends.ErrNoReply) {
				t.Errorf("Ensure: %v", err)
			}
		}
		if n := len(log.names); n != 2 {
			t.Errorf("asked %d times at once after a failure: %v", n-1, log.names)
		}
		time.Sleep(time.Hour)
		_ = c.EnsureProbed(t.Context(), failed, wait)
		if n := len(log.names); n != 3 {
			t.Errorf("an hour later asked %d times more, want once", n-2)
		}
	})
}

// A caller that gives up does not end the probe of others, nor what is learned by it.
func TestProbeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log probeLog
		c := join(t, &log, false, probeReply{time.Second, nil})
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		other := make(chan error, 1)
		go func() { other <- c.Probe(t.Context(), wait) }()
		if err := c.Probe(ctx, wait); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Probe: %v, want its context's end", err)
		}
		if err := <-other; err != nil || len(log.names) != 1 {
			t.Errorf("the other's: %v, asked %v", err, log.names)
		}
	})
}

// A caller whose time is over, by a bound of ours, is told what each backend came to.
func TestProbeOutOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log probeLog
		c := join(t, &log, false, probeReply{-1, nil}, probeReply{0, backends.ErrMalformed})
		ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, &TimeoutError{200 * time.Millisecond})
		defer cancel()
		if err := c.Probe(ctx, wait); !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("Probe: %v, want what both came to", err)
		}
	})
}
