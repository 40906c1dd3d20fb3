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
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

var (
	key          = held.Key{Protocol: backends.TCP, Port: 8080}
	errCancelled = errors.New("cancelled by the test")
)

// fakeBackend is a backend that counts its requests. If release is set, it replies only after
// release is closed. If err is set, it fails with err.
type fakeBackend struct {
	mu                         sync.Mutex
	err                        error
	release                    chan struct{} // nil: it replies at once
	active                     int           // number of active mappings
	mapRequests, unmapRequests int
}

func (b *fakeBackend) setReply(err error, release chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.release = err, release
}

// wantCounts checks the number of active mappings, of map requests and of unmap requests.
func (b *fakeBackend) wantCounts(t *testing.T, active, mapRequests, unmapRequests int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.active != active || b.mapRequests != mapRequests || b.unmapRequests != unmapRequests {
		t.Errorf("%d mappings after %d map and %d unmap requests, want %d, %d, %d", b.active, b.mapRequests, b.unmapRequests, active, mapRequests, unmapRequests)
	}
}

// handle counts a request, waits for its release, and adds change to the number of active
// mappings.
func (b *fakeBackend) handle(ctx context.Context, change int, count *int) error {
	b.mu.Lock()
	*count++
	release := b.release
	b.mu.Unlock()
	if release != nil {
		select {
		case <-release:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.active += change
	}
	return b.err
}

func (*fakeBackend) String() string                  { return "fake" }
func (*fakeBackend) Close() error                    { return nil }
func (*fakeBackend) Supports(backends.Request) error { return nil }

func (*fakeBackend) ExternalAddr(context.Context) (netip.Addr, error) {
	return netip.Addr{}, backends.ErrUnsupported
}

func (b *fakeBackend) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	err := b.handle(ctx, 1, &b.mapRequests)
	return backends.Mapping{
		Backend: "fake", Protocol: r.Protocol, Internal: r.Internal, Lifetime: r.Lifetime, Granted: time.Now(),
		External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), r.External.Port()),
	}, err
}

func (b *fakeBackend) Renew(ctx context.Context, _ backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return b.Map(ctx, r)
}

func (b *fakeBackend) Unmap(ctx context.Context, _ backends.Mapping) error {
	return b.handle(ctx, -1, &b.unmapRequests)
}

// fixture is a Table with a Forwarder that enables its mappings on a fakeBackend.
type fixture struct {
	*held.Table
	backend   *fakeBackend
	forwarder *forward.Forwarder
}

// run runs a test in a synctest bubble.
func run(t *testing.T, test func(*testing.T, *fixture)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fixture{Table: held.New("test"), backend: &fakeBackend{}}
		var err error
		if f.forwarder, err = forward.New(&forward.Config{Backends: []backends.Backend{f.backend}}); err != nil {
			t.Fatal(err)
		}
		defer f.forwarder.Close()
		test(t, f)
	})
}

// requestPort calls Port for key, and checks the external port.
func (f *fixture) requestPort(ctx context.Context) error {
	port, err := f.Port(ctx, key, func(ctx context.Context) (*forward.Mapping, error) {
		return f.forwarder.Enable(ctx, forward.Protocol(key.Protocol, key.Port))
	})
	if (port == key.Port) != (err == nil) {
		return errors.Join(err, errors.New("Port returned a wrong port"))
	}
	return err
}

// startCall calls f in a goroutine, and waits until all goroutines of the test are blocked.
func startCall(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	synctest.Wait()
	return done
}

// wantError checks the error of a call.
func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestConcurrentPort checks that concurrent calls for one key share one request, and that
// all of them return its error. After a failure, the next call requests the mapping again.
func TestConcurrentPort(t *testing.T) {
	for _, want := range []error{nil, backends.ErrNotAuthorized} {
		run(t, func(t *testing.T, f *fixture) {
			release := make(chan struct{})
			f.backend.setReply(want, release)
			var results []<-chan error
			for range 8 {
				results = append(results, startCall(func() error { return f.requestPort(t.Context()) }))
			}
			close(release)
			for _, err := range results {
				wantError(t, "Port", <-err, want)
			}
			active := 0
			if want == nil {
				active = 1
			}
			f.backend.wantCounts(t, active, 1, 0)
			if ms, err := f.Mappings(); len(ms) != active || err != nil {
				t.Errorf("Mappings: %v, %v", ms, err)
			}
			f.backend.setReply(nil, nil)
			wantError(t, "Port again", f.requestPort(t.Context()), nil)
			f.backend.wantCounts(t, 1, 2-active, 0)
		})
	}
}

// TestContextEnds checks that a waiting call returns if its context ends. If the context of
// the requesting call ends, a waiting call sends the request itself.
func TestContextEnds(t *testing.T) {
	run(t, func(t *testing.T, f *fixture) {
		release := make(chan struct{})
		f.backend.setReply(nil, release)
		firstCtx, cancelFirst := context.WithCancelCause(t.Context())
		secondCtx, cancelSecond := context.WithCancelCause(t.Context())
		requesting := startCall(func() error { return f.requestPort(firstCtx) })
		waiting := startCall(func() error { return f.requestPort(secondCtx) })
		removing := startCall(func() error { return f.Remove(secondCtx, key) })
		remaining := startCall(func() error { return f.requestPort(t.Context()) })
		cancelSecond(errCancelled)
		wantError(t, "the waiting call", <-waiting, errCancelled)
		wantError(t, "Remove", <-removing, errCancelled)
		cancelFirst(errCancelled)
		wantError(t, "the requesting call", <-requesting, errCancelled)
		synctest.Wait()
		close(release)
		wantError(t, "the remaining call", <-remaining, nil)
		wantError(t, "Port with a cancelled context", f.requestPort(firstCtx), errCancelled)
		f.backend.setReply(nil, nil)
		wantError(t, "Close", f.Close(), nil)
	})
}

// TestCloseDuringPort checks that a mapping that is granted after Close is deleted, and that
// later calls fail.
func TestCloseDuringPort(t *testing.T) {
	run(t, func(t *testing.T, f *fixture) {
		release := make(chan struct{})
		f.backend.setReply(nil, release)
		requesting := startCall(func() error { return f.requestPort(t.Context()) })
		waiting := startCall(func() error { return f.requestPort(t.Context()) })
		wantError(t, "Close", f.Close(), nil)
		close(release)
		wantError(t, "the requesting call", <-requesting, forward.ErrClosed)
		wantError(t, "the waiting call", <-waiting, forward.ErrClosed)
		f.backend.wantCounts(t, 0, 1, 1)
		wantError(t, "Port", f.requestPort(t.Context()), forward.ErrClosed)
		wantError(t, "Remove", f.Remove(t.Context(), key), nil)
		wantError(t, "the second Close", f.Close(), nil)
		_, err := f.Mappings()
		wantError(t, "Mappings", err, forward.ErrClosed)
		f.backend.wantCounts(t, 0, 1, 1)
	})
}

// TestCloseDuringRefresh calls Close while Port requests a lost mapping. Port must not request
// a new mapping then.
func TestCloseDuringRefresh(t *testing.T) {
	run(t, func(t *testing.T, f *fixture) {
		wantError(t, "Port", f.requestPort(t.Context()), nil)
		f.backend.setReply(backends.ErrNetworkFailure, nil)
		time.Sleep(2 * forward.DefaultLifetime)
		release := make(chan struct{})
		f.backend.setReply(backends.ErrNetworkFailure, release)
		requesting := startCall(func() error { return f.requestPort(t.Context()) })
		closing := startCall(f.Close)
		f.backend.mu.Lock()
		mapRequests := f.backend.mapRequests
		f.backend.mu.Unlock()
		close(release)
		<-closing // its error does not matter here: the backend fails
		wantError(t, "Port", <-requesting, forward.ErrClosed)
		f.backend.mu.Lock()
		defer f.backend.mu.Unlock()
		if f.backend.mapRequests != mapRequests {
			t.Errorf("%d map requests after Close", f.backend.mapRequests-mapRequests)
		}
	})
}

// TestRemoveDuringPort checks that Remove waits for Port, and that Close waits for the
// deletion of a Remove whose context ended.
func TestRemoveDuringPort(t *testing.T) {
	run(t, func(t *testing.T, f *fixture) {
		release := make(chan struct{})
		f.backend.setReply(nil, release)
		requesting := startCall(func() error { return f.requestPort(t.Context()) })
		removing := startCall(func() error { return f.Remove(t.Context(), key) })
		close(release)
		wantError(t, "Port", <-requesting, nil)
		wantError(t, "Remove", <-removing, nil)
		f.backend.wantCounts(t, 0, 1, 1)

		wantError(t, "Port", f.requestPort(t.Context()), nil)
		release = make(chan struct{})
		f.backend.setReply(nil, release)
		ctx, cancel := context.WithCancelCause(t.Context())
		removing = startCall(func() error { return f.Remove(ctx, key) })
		cancel(errCancelled)
		wantError(t, "Remove", <-removing, errCancelled)
		wantError(t, "Remove again", f.Remove(t.Context(), key), nil)
		closing := startCall(f.Close)
		if len(closing) > 0 {
			t.Error("Close did not wait for the deletion")
		}
		close(release)
		wantError(t, "Close", <-closing, nil)
		f.backend.wantCounts(t, 0, 2, 2)
	})
}

// TestClose checks that Close closes all mappings at the same time, or the OwnedForwarder. The
// backend does not reply.
func TestClose(t *testing.T) {
	for _, owned := range []bool{false, true} {
		run(t, func(t *testing.T, f *fixture) {
			if owned {
				f.OwnedForwarder = f.forwarder
			}
			for port := range uint16(4) {
				_, err := f.Port(t.Context(), held.Key{Protocol: backends.UDP, Port: 4001 + port}, func(ctx context.Context) (*forward.Mapping, error) {
					return f.forwarder.Enable(ctx, forward.UDP(4001+port))
				})
				wantError(t, "Port", err, nil)
			}
			f.backend.setReply(nil, make(chan struct{})) // is never closed: no reply
			start := time.Now()
			wantError(t, "Close", f.Close(), backends.ErrNoReply)
			if elapsed := time.Since(start); elapsed > forward.DefaultCloseTimeout {
				t.Errorf("Close took %v", elapsed)
			}
			if _, err := f.forwarder.Enable(t.Context(), forward.Background()); errors.Is(err, forward.ErrClosed) != owned {
				t.Errorf("Enable after Close: %v", err)
			}
		})
	}
}

// TestKey checks valid and invalid protocols and ports.
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
