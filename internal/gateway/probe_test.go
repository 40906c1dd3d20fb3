package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wait bounds each probe.
const wait = 3 * time.Second

// fakeBackend is a backend that makes no requests.
type fakeBackend struct {
	backends.Backend
	name     string
	hopeless bool       // its search cannot succeed any more
	other    netip.Addr // of a device that is not the gateway's
}

func (n *fakeBackend) String() string  { return n.name }
func (n *fakeBackend) Close() error    { return nil }
func (n *fakeBackend) Promising() bool { return !n.hopeless }

func (n *fakeBackend) OtherDevice() netip.Addr { return n.other }

// probeReply describes a probe that returns err after a duration. A negative duration means
// no reply.
type probeReply struct {
	after time.Duration
	err   error
}

// probeLog records which backends were probed.
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

// errorSink joins errors and ignores all other calls.
type errorSink struct{ Sink }

func (errorSink) Handler() slog.Handler { return slog.DiscardHandler }

func (errorSink) CombineErrors(attempts []error, _ netip.Addr, _ *Spec) error {
	return errors.Join(attempts...)
}

// join returns a client of an owner with backends that reply as described. If searched is
// set, the last backend uses a search. The backends are named a, b and so on.
func join(t *testing.T, log *probeLog, searched bool, probes ...probeReply) *Client {
	t.Helper()
	fakes := make([]fakeProbe, len(probes))
	for i, a := range probes {
		name := string(rune('a' + i))
		fakes[i] = fakeProbe{name, a.probe(log, name), searched && i == len(probes)-1}
	}
	return joinAt(t, NewRegistry(Jitter), Key{}, fakes...)
}

// fakeProbe is a backend with a probe of its own.
type fakeProbe struct {
	name     string
	probe    func(context.Context) error
	searches bool
}

// joinAt returns a client of the owner of a gateway.
func joinAt(t *testing.T, r *Registry, key Key, fakes ...fakeProbe) *Client {
	t.Helper()
	var configs []BackendConfig
	for _, f := range fakes {
		configs = append(configs, BackendConfig{Ready: &fakeBackend{name: f.name}, probe: &f.probe, search: f.searches})
	}
	c, err := r.Join(key, configs, errorSink{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !c.isGone() {
			c.Discard()
		}
	})
	return c
}

// isGone reports whether the client has left its owner.
func (c *Client) isGone() bool { return !c.owner.loop.Do(func() {}) }

// TestProbe checks which of three backends is selected, after what time, and which backends
// were probed.
func TestProbe(t *testing.T) {
	const ms = time.Millisecond
	yes := func(d time.Duration) probeReply { return probeReply{d, nil} }
	silent, refuses := probeReply{-1, nil}, probeReply{0, backends.ErrNoReply}
	for name, test := range map[string]struct {
		backends []probeReply
		selected string // "" means none
		after    time.Duration
		probed   string
		searched bool // the last backend uses a search
	}{
		"the first replies at once":                      {[]probeReply{yes(ms), yes(ms), yes(ms)}, "a", ms, "a b c", false},
		"the first replies in time":                      {[]probeReply{yes(9 * ms), yes(ms), yes(ms)}, "a", 9 * ms, "a b c", false},
		"the first replies too late":                     {[]probeReply{yes(11 * ms), yes(ms), yes(ms)}, "b", 10 * ms, "a b c", false},
		"the first replies in time, of a slow gateway":   {[]probeReply{yes(119 * ms), yes(20 * ms), silent}, "a", 119 * ms, "a b c", false},
		"the first replies too late, of a slow gateway":  {[]probeReply{yes(121 * ms), yes(20 * ms), silent}, "b", 120 * ms, "a b c", false},
		"the first returns an error":                     {[]probeReply{refuses, yes(ms), yes(ms)}, "b", ms, "a b c", false},
		"the first refuses mappings only":                {[]probeReply{{ms, backends.ErrNotAuthorized}, yes(ms), yes(ms)}, "a", ms, "a b c", false},
		"only the third replies, the others refuse":      {[]probeReply{refuses, refuses, yes(ms)}, "c", ms, "a b c", false},
		"only the third replies":                         {[]probeReply{silent, silent, yes(ms)}, "c", 10 * ms, "a b c", false},
		"only the third replies, after a delay":          {[]probeReply{silent, silent, yes(time.Second)}, "c", time.Second, "a b c", false},
		"the second replies after the third":             {[]probeReply{silent, yes(9 * ms), yes(ms)}, "b", 10 * ms, "a b c", false},
		"none replies":                                   {[]probeReply{silent, silent, silent}, "", wait, "a b c", false},
		"all return errors":                              {[]probeReply{refuses, refuses, refuses}, "", 0, "a b c", false},
		"the first replies before the search starts":     {[]probeReply{yes(24 * ms), yes(24 * ms), yes(ms)}, "a", 24 * ms, "a b", true},
		"the first replies after the search has started": {[]probeReply{yes(26 * ms), silent, yes(ms)}, "a", 26 * ms, "a b c", true},
		"found by a search":                              {[]probeReply{silent, silent, yes(ms)}, "c", 250 * ms, "a b c", true},
		"found by a search that starts at once":          {[]probeReply{refuses, refuses, yes(ms)}, "c", ms, "a b c", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log probeLog
				c := join(t, &log, test.searched, test.backends...)
				begin := time.Now()
				err := c.Probe(t.Context(), wait)
				if took := time.Since(begin); took != test.after {
					t.Errorf("took %v, want %v", took, test.after)
				}
				if (err == nil) != (test.selected != "") || err != nil && !errors.Is(err, backends.ErrNoReply) {
					t.Fatalf("Probe: %v", err)
				}
				if err == nil && c.Available()[0].name != test.selected {
					t.Errorf("selected %v, want %s", c.Available()[0], test.selected)
				}
				synctest.Wait()
				slices.Sort(log.names)
				if got := strings.Join(log.names, " "); got != test.probed {
					t.Errorf("probed %s, want %s", got, test.probed)
				}
			})
		})
	}
}

// TestEnsureProbed checks that a backend without a result is probed when it is needed, and
// only once. If the call is cancelled, the result remains unknown.
func TestEnsureProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log probeLog
		c := join(t, &log, false, probeReply{time.Second, backends.ErrMalformed})
		b := c.Backends()[0]
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := c.EnsureProbed(ctx, b, wait); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(b.probeErr, errNotProbed) {
			t.Errorf("with a short deadline: %v, result %v", err, b.probeErr)
		}
		for range 2 {
			if err := c.EnsureProbed(t.Context(), b, wait); !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("EnsureProbed: %v", err)
			}
		}
		if len(log.names) != 2 {
			t.Errorf("probed %v", log.names)
		}
	})
}

// TestFailedProbeRepeated checks that a backend that failed is probed again after a while if
// another one is available, but not at each call.
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
				t.Errorf("EnsureProbed: %v", err)
			}
		}
		if n := len(log.names); n != 2 {
			t.Errorf("probed %d more times right after a failure: %v", n-1, log.names)
		}
		time.Sleep(time.Hour)
		_ = c.EnsureProbed(t.Context(), failed, wait)
		if n := len(log.names); n != 3 {
			t.Errorf("an hour later probed %d more times, want once", n-2)
		}
	})
}

// TestProbeCallerCancels checks that a probe continues for its other callers if one of them
// cancels its context.
func TestProbeCallerCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log probeLog
		c := join(t, &log, false, probeReply{time.Second, nil})
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		other := make(chan error, 1)
		go func() { other <- c.Probe(t.Context(), wait) }()
		if err := c.Probe(ctx, wait); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Probe: %v, want the end of its context", err)
		}
		if err := <-other; err != nil || len(log.names) != 1 {
			t.Errorf("the other caller: %v, probed %v", err, log.names)
		}
	})
}

// TestProbeTimeout checks that a caller that reaches a timeout of this library receives the
// error of each backend.
func TestProbeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log probeLog
		c := join(t, &log, false, probeReply{-1, nil}, probeReply{0, backends.ErrMalformed})
		ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, &TimeoutError{200 * time.Millisecond})
		defer cancel()
		if err := c.Probe(ctx, wait); !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("Probe: %v, want the errors of both backends", err)
		}
	})
}

// TestProbeSearchVerdict checks that a search without a result ends early only if the gateway
// refuses everything, and that its own error is returned.
func TestProbeSearchVerdict(t *testing.T) {
	refused := probeReply{time.Millisecond, fmt.Errorf("%w: %w", backends.ErrNoReply, errno.ECONNREFUSED)}
	for name, test := range map[string]struct {
		first, second probeReply
		hopeless      bool // the gateway refuses the search
		after         time.Duration
	}{
		"everything refused":       {refused, refused, true, searchTime},
		"the search is not":        {refused, refused, false, wait},
		"one port is not":          {refused, probeReply{-1, nil}, true, wait},
		"one port answers rubbish": {refused, probeReply{0, backends.ErrMalformed}, true, wait},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log probeLog
				c := join(t, &log, true, test.first, test.second, probeReply{-1, nil})
				c.Backends()[2].Backend.(*fakeBackend).hopeless = test.hopeless
				begin := time.Now()
				err := c.Probe(t.Context(), wait)
				if took := time.Since(begin); took != test.after {
					t.Errorf("took %v, want %v", took, test.after)
				}
				var own *TimeoutError
				if !errors.As(c.Backends()[2].probeErr, &own) || own.After != test.after || err == nil {
					t.Errorf("Probe: %v, the search: %v", err, c.Backends()[2].probeErr)
				}
			})
		})
	}
}

// TestSearchFailure checks that the error of a search that failed is neither a reply nor
// replaced by another one.
func TestSearchFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, kind := range []error{backends.ErrNotAuthorized, backends.ErrMalformed, backends.ErrNoReply} {
			failure := fmt.Errorf("upnp: %w: description", kind)
			var log probeLog
			c := join(t, &log, true, probeReply{0, backends.ErrNoReply}, probeReply{0, failure})
			if err := c.Probe(t.Context(), wait); !errors.Is(err, failure) {
				t.Errorf("Probe: %v, want %v", err, failure)
			}
			c = join(t, &log, true, probeReply{0, nil}, probeReply{0, failure})
			if err := c.Probe(t.Context(), wait); err != nil {
				t.Fatal(err)
			}
			err := c.EnsureProbed(t.Context(), c.Backends()[1], wait)
			if errors.Is(kind, backends.ErrNoReply) {
				kind = backends.ErrUnsupported
			}
			if !errors.Is(err, kind) || err.Error() != failure.Error() {
				t.Errorf("EnsureProbed: %v, want %v", err, kind)
			}
		}
	})
}

// TestOtherDevice checks that a device that is not the gateway's is used only if no other
// backend is available.
func TestOtherDevice(t *testing.T) {
	for name, test := range map[string]struct {
		first probeReply
		other string
		want  error
	}{
		"the gateway replies":          {probeReply{0, nil}, "192.0.2.9", backends.ErrUnsupported},
		"the gateway refuses mappings": {probeReply{0, backends.ErrNotAuthorized}, "192.0.2.9", backends.ErrUnsupported},
		"the gateway supports nothing": {probeReply{0, backends.ErrNoReply}, "192.0.2.9", nil},
		"the device of the gateway":    {probeReply{0, nil}, "", nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			var log probeLog
			c := join(t, &log, true, test.first, probeReply{0, nil})
			search := c.Backends()[1]
			search.Backend.(*fakeBackend).other, _ = netip.ParseAddr(test.other)
			for _, call := range []string{"first", "second"} {
				_ = c.Probe(t.Context(), wait)
				if err := c.EnsureProbed(t.Context(), search, wait); !errors.Is(err, test.want) {
					t.Errorf("%s, %s call: %v, want %v", name, call, err, test.want)
				}
			}
		})
	}
}
