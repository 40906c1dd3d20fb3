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
	key      = held.Key{Protocol: backends.TCP, Port: 8080}
	errCause = errors.New("enough")
)

// router is a backend that counts its requests, and answers them when it may.
type router struct {
	mu            sync.Mutex
	err           error
	hold          chan struct{} // nil: no request waits
	mapped        int           // mappings that exist
	asked, closed int
}

func (r *router) set(err error, hold chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err, r.hold = err, hold
}

// want compares the numbers of mappings that exist, and of requests to map and to unmap.
func (r *router) want(t *testing.T, mapped, asked, closed int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mapped != mapped || r.asked != asked || r.closed != closed {
		t.Errorf("%d mappings after %d requests and %d deletions, want %d, %d, %d", r.mapped, r.asked, r.closed, mapped, asked, closed)
	}
}

func (r *router) answer(ctx context.Context, change int, count *int) error {
	r.mu.Lock()
	*count++
	hold := r.hold
	r.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.mapped += change
	}
	return r.err
}

func (*router) String() string                  { return "router" }
func (*router) Close() error                    { return nil }
func (*router) Supports(backends.Request) error { return nil }

func (*router) ExternalAddr(context.Context) (netip.Addr, error) {
	return netip.Addr{}, backends.ErrUnsupported
}

func (r *router) Map(ctx context.Context, q backends.Request) (backends.Mapping, error) {
	err := r.answer(ctx, 1, &r.asked)
	return backends.Mapping{
		Backend: "router", Protocol: q.Protocol, Internal: q.Internal, Lifetime: q.Lifetime, Granted: time.Now(),
		External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), q.External.Port()),
	}, err
}

func (r *router) Renew(ctx context.Context, _ backends.Mapping, q backends.Request) (backends.Mapping, error) {
	return r.Map(ctx, q)
}

func (r *router) Unmap(ctx context.Context, _ backends.Mapping) error {
	return r.answer(ctx, -1, &r.closed)
}

// rig is a Table, and what enables its mappings.
type rig struct {
	*held.Table
	router    *router
	forwarder *forward.Forwarder
}

// run runs a test on virtual time.
func run(t *testing.T, test func(*testing.T, *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{Table: held.New("test"), router: &router{}}
		var err error
		if r.forwarder, err = forward.New(&forward.Config{Backends: []backends.Backend{r.router}}); err != nil {
			t.Fatal(err)
		}
		defer r.forwarder.Close()
		test(t, r)
	})
}

func (r *rig) port(ctx context.Context) error {
	port, err := r.Port(ctx, key, func(ctx context.Context) (*forward.Mapping, error) {
		return r.forwarder.Enable(ctx, forward.Protocol(key.Protocol, key.Port))
	})
	if (port == key.Port) != (err == nil) {
		return errors.Join(err, errors.New("a wrong port"))
	}
	return err
}

// do calls f on a goroutine, and waits until nothing goes on but that waits.
func do(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	synctest.Wait()
	return done
}

func is(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// Calls about one key at once make one request, whether that succeeds or fails.
func TestTogether(t *testing.T) {
	for _, want := range []error{nil, backends.ErrNotAuthorized} {
		run(t, func(t *testing.T, r *rig) {
			answer := make(chan struct{})
			r.router.set(want, answer)
			var all []<-chan error
			for range 8 {
				all = append(all, do(func() error { return r.port(t.Context()) }))
			}
			close(answer)
			for _, err := range all {
				is(t, "Port", <-err, want)
			}
			mapped := 0
			if want == nil {
				mapped = 1
			}
			r.router.want(t, mapped, 1, 0)
			if ms, err := r.Mappings(); len(ms) != mapped || err != nil {
				t.Errorf("held is %v, %v", ms, err)
			}
			r.router.set(nil, nil)
			is(t, "Port again", r.port(t.Context()), nil)
			r.router.want(t, 1, 2-mapped, 0)
		})
	}
}

// A call obeys its context while it waits, and tries itself if that of another ended.
func TestContext(t *testing.T) {
	run(t, func(t *testing.T, r *rig) {
		answer := make(chan struct{})
		r.router.set(nil, answer)
		first, endFirst := context.WithCancelCause(t.Context())
		second, endSecond := context.WithCancelCause(t.Context())
		asks := do(func() error { return r.port(first) })
		waits := do(func() error { return r.port(second) })
		removes := do(func() error { return r.Remove(second, key) })
		stays := do(func() error { return r.port(t.Context()) })
		endSecond(errCause)
		is(t, "the one that waits", <-waits, errCause)
		is(t, "Remove", <-removes, errCause)
		endFirst(errCause)
		is(t, "the one that asks", <-asks, errCause)
		synctest.Wait()
		close(answer)
		is(t, "the one that stays", <-stays, nil)
		is(t, "with an ended context", r.port(first), errCause)
		r.router.set(nil, nil)
		is(t, "Close", r.Close(), nil)
	})
}

// A mapping that is granted after Close is deleted.
func TestCloseMeanwhile(t *testing.T) {
	run(t, func(t *testing.T, r *rig) {
		answer := make(chan struct{})
		r.router.set(nil, answer)
		asks := do(func() error { return r.port(t.Context()) })
		waits := do(func() error { return r.port(t.Context()) })
		is(t, "Close", r.Close(), nil)
		close(answer)
		is(t, "the one that asks", <-asks, forward.ErrClosed)
		is(t, "the one that waits", <-waits, forward.ErrClosed)
		r.router.want(t, 0, 1, 1)
		is(t, "Port", r.port(t.Context()), forward.ErrClosed)
		is(t, "Remove", r.Remove(t.Context(), key), nil)
		is(t, "the second Close", r.Close(), nil)
		_, err := r.Mappings()
		is(t, "Mappings", err, forward.ErrClosed)
		r.router.want(t, 0, 1, 1)
	})
}

// Close while a lost mapping is requested requests no other.
func TestCloseLost(t *testing.T) {
	run(t, func(t *testing.T, r *rig) {
		is(t, "Port", r.port(t.Context()), nil)
		r.router.set(backends.ErrNetworkFailure, nil)
		time.Sleep(2 * forward.DefaultLifetime)
		answer := make(chan struct{})
		r.router.set(backends.ErrNetworkFailure, answer)
		asks := do(func() error { return r.port(t.Context()) })
		closes := do(r.Close)
		r.router.mu.Lock()
		asked := r.router.asked
		r.router.mu.Unlock()
		close(answer)
		<-closes // that the gateway fails is no matter here
		is(t, "Port", <-asks, forward.ErrClosed)
		r.router.mu.Lock()
		defer r.router.mu.Unlock()
		if r.router.asked != asked {
			t.Errorf("%d more requests", r.router.asked-asked)
		}
	})
}

// Remove waits for Port, and Close for Remove.
func TestRemoveMeanwhile(t *testing.T) {
	run(t, func(t *testing.T, r *rig) {
		answer := make(chan struct{})
		r.router.set(nil, answer)
		asks := do(func() error { return r.port(t.Context()) })
		removes := do(func() error { return r.Remove(t.Context(), key) })
		close(answer)
		is(t, "Port", <-asks, nil)
		is(t, "Remove", <-removes, nil)
		r.router.want(t, 0, 1, 1)

		is(t, "Port", r.port(t.Context()), nil)
		answer = make(chan struct{})
		r.router.set(nil, answer)
		ctx, cancel := context.WithCancelCause(t.Context())
		removes = do(func() error { return r.Remove(ctx, key) })
		cancel(errCause)
		is(t, "Remove", <-removes, errCause)
		is(t, "Remove again", r.Remove(t.Context(), key), nil)
		closes := do(r.Close)
		if len(closes) > 0 {
			t.Error("Close did not wait for the deletion")
		}
		close(answer)
		is(t, "Close", <-closes, nil)
		r.router.want(t, 0, 2, 2)
	})
}

// Close closes all at once, or the Table's own Forwarder.
func TestClose(t *testing.T) {
	for _, own := range []bool{false, true} {
		run(t, func(t *testing.T, r *rig) {
			if own {
				r.Own = r.forwarder
			}
			for port := range uint16(4) {
				_, err := r.Port(t.Context(), held.Key{Protocol: backends.UDP, Port: 4001 + port}, func(ctx context.Context) (*forward.Mapping, error) {
					return r.forwarder.Enable(ctx, forward.UDP(4001+port))
				})
				is(t, "Port", err, nil)
			}
			r.router.set(nil, make(chan struct{})) // never answers
			begun := time.Now()
			is(t, "Close", r.Close(), backends.ErrNoReply)
			if took := time.Since(begun); took > forward.DefaultCloseTimeout {
				t.Errorf("Close took %v", took)
			}
			if _, err := r.forwarder.Enable(t.Context(), forward.Background()); errors.Is(err, forward.ErrClosed) != own {
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
