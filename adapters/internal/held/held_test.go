package held_test

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/adapters/internal/held"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

var (
	key          = held.Key{Protocol: backends.TCP, Port: 8080}
	errCancelled = errors.New("enough")
)

// router is a backend that counts its requests, and answers them when it may.
type fakeBackend struct {
	mu                         sync.Mutex
	err                        error
	release                    chan struct{} // nil: no request waits
	active                     int           // mappings that exist
	mapRequests, unmapRequests int
}

func (r *fakeBackend) setReply(err error, release chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.release = err, release
}

// want compares the numbers of mappings that exist, and of requests to map and to unmap.
func (r *fakeBackend) wantCounts(t *testing.T, active, mapRequests, unmapRequests int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active != active || r.mapRequests != mapRequests || r.unmapRequests != unmapRequests {
		t.Errorf("%d mappings after %d requests and %d deletions, want %d, %d, %d", r.active, r.mapRequests, r.unmapRequests, active, mapRequests, unmapRequests)
	}
}

func (r *fakeBackend) handle(ctx context.Context, change int, count *int) error {
	r.mu.Lock()
	*count++
	release := r.release
	r.mu.Unlock()
	if release != nil {
		select {
		case <-release:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.active += change
	}
	return r.err
}

func (*fakeBackend) String() string                  { return "router" }
func (*fakeBackend) Close() error                    { return nil }
func (*fakeBackend) Supports(backends.Request) error { return nil }

func (*fakeBackend) ExternalAddr(context.Context) (netip.Addr, error) {
	return netip.Addr{}, backends.ErrUnsupported
}

func (r *fakeBackend) Map(ctx context.Context, q backends.Request) (backends.Mapping, error) {
	err := r.handle(ctx, 1, &r.mapRequests)
	return backends.Mapping{
		Backend: "router", Protocol: q.Protocol, Internal: q.Internal, Lifetime: q.Lifetime, Granted: time.Now(),
		External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), q.External.Port()),
	}, err
}

func (r *fakeBackend) Renew(ctx context.Context, _ backends.Mapping, q backends.Request) (backends.Mapping, error) {
	return r.Map(ctx, q)
}

func (r *fakeBackend) Unmap(ctx context.Context, _ backends.Mapping) error {
	return r.handle(ctx, -1, &r.unmapRequests)
}

// rig is a Table, and what enables its mappings.
type fixture struct {
	*held.Table
	backend   *fakeBackend
	forwarder *forward.Forwarder
}

// run runs a test on virtual time.
func run(t *testing.T, test func(*testing.T, *fixture)) {
	synctest.Test(t, func(t *testing.T) {
		r := &fixture{Table: held.New("test"), backend: &fakeBackend{}}
		var err error
		if r.forwarder, err = forward.New(&forward.Config{Backends: []backends.Backend{r.backend}}); err != nil {
			t.Fatal(err)
		}
		defer r.forwarder.Close()
		test(t, r)
	})
}

func (r *fixture) requestPort(ctx context.Context) error {
	port, err := r.Port(ctx, key, func(ctx context.Context) (*forward.Mapping, error) {
		return r.forwarder.Enable(ctx, forward.Protocol(key.Protocol, key.Port))
	})
	if (port == key.Port) != (err == nil) {
		return errors.Join(err, errors.New("a wrong port"))
	}
	return err
}

// do calls f on a goroutine, and waits until nothing goes on but that waits.
func startCall(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	synctest.Wait()
	return done
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// Calls about one key at once make one request, whether that succeeds or fails.
func TestConcurrentPort(t *testing.T) {
	for _, want := range []error{nil, backends.ErrNotAuthorized} {
		run(t, func(t *testing.T, r *fixture) {
			release := make(chan struct{})
			r.backend.setReply(want, release)
			var results []<-chan error
			for range 8 {
				results = append(results, startCall(func() error { return r.requestPort(t.Context()) }))
			}
			close(release)
			for _, err := range results {
				wantError(t, "Port", <-err, want)
			}
			active := 0
			if want == nil {
				active = 1
			}
			r.backend.wantCounts(t, active, 1, 0)
			if ms, err := r.Mappings(); len(ms) != active || err != nil {
				t.Errorf("held is %v, %v", ms, err)
			}
			r.backend.setReply(nil, nil)
			wantError(t, "Port again", r.requestPort(t.Context()), nil)
			r.backend.wantCounts(t, 1, 2-active, 0)
		})
	}
}

// A call obeys its context while it waits, and tries itself if that of another ended.
func TestContextEnds(t *testing.T) {
	run(t, func(t *testing.T, r *fixture) {
		release := make(chan struct{})
		r.backend.setReply(nil, release)
		firstCtx, cancelFirst := context.WithCancelCause(t.Context())
		secondCtx, cancelSecond := context.WithCancelCause(t.Context())
		requesting := startCall(func() error { return r.requestPort(firstCtx) })
		waiting := startCall(func() error { return r.requestPort(secondCtx) })
		removing := startCall(func() error { return r.Remove(secondCtx, key) })
		remaining := startCall(func() error { return r.requestPort(t.Context()) })
		cancelSecond(errCancelled)
		wantError(t, "the one that waits", <-waiting, errCancelled)
		wantError(t, "Remove", <-removing, errCancelled)
		cancelFirst(errCancelled)
		wantError(t, "the one that asks", <-requesting, errCancelled)
		synctest.Wait()
		close(release)
		wantError(t, "the one that stays", <-remaining, nil)
		wantError(t, "with an ended context", r.requestPort(firstCtx), errCancelled)
		r.backend.setReply(nil, nil)
		wantError(t, "Close", r.Close(), nil)
	})
}

// A mapping that is granted after Close is deleted.
func TestCloseDuringPort(t *testing.T) {
	run(t, func(t *testing.T, r *fixture) {
		release := make(chan struct{})
		r.backend.setReply(nil, release)
		requesting := startCall(func() error { return r.requestPort(t.Context()) })
		waiting := startCall(func() error { return r.requestPort(t.Context()) })
		wantError(t, "Close", r.Close(), nil)
		close(release)
		wantError(t, "the one that asks", <-requesting, forward.ErrClosed)
		wantError(t, "the one that waits", <-waiting, forward.ErrClosed)
		r.backend.wantCounts(t, 0, 1, 1)
		wantError(t, "Port", r.requestPort(t.Context()), forward.ErrClosed)
		wantError(t, "Remove", r.Remove(t.Context(), key), nil)
		wantError(t, "the second Close", r.Close(), nil)
		_, err := r.Mappings()
		wantError(t, "Mappings", err, forward.ErrClosed)
		r.backend.wantCounts(t, 0, 1, 1)
	})
}

// Close while a lost mapping is requested requests no other.
func TestCloseDuringRefresh(t *testing.T) {
	run(t, func(t *testing.T, r *fixture) {
		wantError(t, "Port", r.requestPort(t.Context()), nil)
		r.backend.setReply(backends.ErrNetworkFailure, nil)
		time.Sleep(2 * forward.DefaultLifetime)
		release := make(chan struct{})
		r.backend.setReply(backends.ErrNetworkFailure, release)
		requesting := startCall(func() error { return r.requestPort(t.Context()) })
		closing := startCall(r.Close)
		r.backend.mu.Lock()
		mapRequests := r.backend.mapRequests
		r.backend.mu.Unlock()
		close(release)
		<-closing // that the gateway fails is no matter here
		wantError(t, "Port", <-requesting, forward.ErrClosed)
		r.backend.mu.Lock()
		defer r.backend.mu.Unlock()
		if r.backend.mapRequests != mapRequests {
			t.Errorf("%d more requests", r.backend.mapRequests-mapRequests)
		}
	})
}

// Remove waits for Port, and Close for Remove.
func TestRemoveDuringPort(t *testing.T) {
	run(t, func(t *testing.T, r *fixture) {
		release := make(chan struct{})
		r.backend.setReply(nil, release)
		requesting := startCall(func() error { return r.requestPort(t.Context()) })
		removing := startCall(func() error { return r.Remove(t.Context(), key) })
		close(release)
		wantError(t, "Port", <-requesting, nil)
		wantError(t, "Remove", <-removing, nil)
		r.backend.wantCounts(t, 0, 1, 1)

		wantError(t, "Port", r.requestPort(t.Context()), nil)
		release = make(chan struct{})
		r.backend.setReply(nil, release)
		ctx, cancel := context.WithCancelCause(t.Context())
		removing = startCall(func() error { return r.Remove(ctx, key) })
		cancel(errCancelled)
		wantError(t, "Remove", <-removing, errCancelled)
		wantError(t, "Remove again", r.Remove(t.Context(), key), nil)
		closing := startCall(r.Close)
		if len(closing) > 0 {
			t.Error("Close did not wait for the deletion")
		}
		close(release)
		wantError(t, "Close", <-closing, nil)
		r.backend.wantCounts(t, 0, 2, 2)
	})
}

// Close closes all at once, or the Table's own Forwarder.
func TestClose(t *testing.T) {
	for _, owned := range []bool{false, true} {
		run(t, func(t *testing.T, r *fixture) {
			if owned {
				r.OwnedForwarder = r.forwarder
			}
			for port := range uint16(4) {
				_, err := r.Port(t.Context(), held.Key{Protocol: backends.UDP, Port: 4001 + port}, func(ctx context.Context) (*forward.Mapping, error) {
					return r.forwarder.Enable(ctx, forward.UDP(4001+port))
				})
				wantError(t, "Port", err, nil)
			}
			r.backend.setReply(nil, make(chan struct{})) // never answers
			start := time.Now()
			wantError(t, "Close", r.Close(), backends.ErrNoReply)
			if elapsed := time.Since(start); elapsed > forward.DefaultCloseTimeout {
				t.Errorf("Close took %v", elapsed)
			}
			if _, err := r.forwarder.Enable(t.Context(), forward.Background()); errors.Is(err, forward.ErrClosed) != owned {
				t.Errorf("the Forwarder after Close: %v", err)
			}
		})
	}
}

func TestKey(t *testing.T) {
	table := held.New("test")
	for _, c := range []struct {
		protocol string
		port     int
		want     held.Key // zero: invalid
	}{
		{"tcp", 1, held.Key{Protocol: backends.TCP, Port: 1}},
		{"UDP", 65535, held.Key{Protocol: backends.UDP, Port: 65535}},
		{"Tcp", 8080, key},
		{"", 80, held.Key{}},
		{"6", 80, held.Key{}},
		{"sctp", 80, held.Key{}},
		{"tcp4", 80, held.Key{}},
		{"tcp ", 80, held.Key{}},
		{"tcp", 0, held.Key{}},
		{"tcp", -1, held.Key{}},
		{"udp", 65536, held.Key{}},
		{"udp", 65536 + 80, held.Key{}},
	} {
		got, err := table.Key(c.protocol, c.port)
		if got != c.want || errors.Is(err, backends.ErrInvalid) != (c.want == held.Key{}) {
			t.Errorf("%q %d: %v, %v", c.protocol, c.port, got, err)
		}
	}
}
