package forward_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// modelLifetime is what the Forwarders ask for. No lifetime is longer than an hour,
// except Forever: all entries are renewed in a calm.
const modelLifetime = 10 * time.Minute

// modelForwarder is a Forwarder that uses ready-made backends, or the default route.
type modelForwarder struct {
	*forward.Forwarder
	world     *modelWorld
	index     int
	gateways  []*modelGateway // that it may use
	callbacks atomic.Int32    // in progress

	routed  bool
	routing chan struct{} // holds one element while the route changes
	route   atomic.Pointer[modelGateway]

	// Guarded by world.mu.
	closing, closed, replaced bool // Shutdown was called, has returned
}

// modelHandle is a mapping, and what is known about it.
type modelHandle struct {
	mapping   *forward.Mapping
	forwarder *modelForwarder

	// Guarded by world.mu.
	spec    *modelSpec // nil until Enable returns
	altered bool       // Refresh changed what the spec says
	last    forward.Event
	closed  time.Time // when it was first seen to be closed
	ended   bool      // Close has returned
}

// modelSlot keeps a handle for the next operation. The number of the slot decides
// about the Forwarder.
type modelSlot struct {
	handle   *modelHandle
	enabling *modelSpec // Enable is in progress
}

// newForwarder returns the i-th Forwarder: two use one gateway, one uses this and
// another gateway, and two use the default route.
func (w *modelWorld) newForwarder(i int) *modelForwarder {
	f := &modelForwarder{world: w, index: i, routing: make(chan struct{}, 1)}
	switch i {
	case 0, 1:
		f.gateways = w.gateways[:1]
	case 2:
		f.gateways = w.gateways[:modelReady]
	default:
		f.gateways, f.routed = w.gateways[modelReady:], true
	}
	config := forward.Config{Lifetime: modelLifetime, OnEvent: f.onEvent, Logger: slog.New(modelLogger{w})}
	if !f.routed {
		for _, g := range f.gateways {
			config.Backends = append(config.Backends, g)
		}
	}
	var err error
	if f.Forwarder, err = forward.New(&config); err != nil {
		w.t.Fatal(err)
	}
	if w.registry == nil {
		w.jitter = seededJitter(w.seed)
		w.registry = forward.NewRegistry(w.jitter)
	}
	f.SetRegistry(w.registry, w.jitter)
	if f.routed {
		f.setRoute(f.gateways[0], false)
	}
	return f
}

// setRoute makes the default route lead to a gateway; nil: there is none. The
// Forwarder is told, or has to notice.
func (f *modelForwarder) setRoute(g *modelGateway, tell bool) {
	f.routing <- struct{}{}
	defer func() { <-f.routing }()
	f.route.Store(g)
	if g == nil {
		f.SetRoute(netip.Addr{}, f.gateways[0].local)
	} else {
		f.SetRoute(g.addr.Addr(), g.local, g)
	}
	if tell {
		f.NetworkChanged()
	}
}

// note returns the handle of a mapping.
func (w *modelWorld) note(f *modelForwarder, m *forward.Mapping) *modelHandle {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.handles[m]
	if h == nil {
		h = &modelHandle{mapping: m, forwarder: f}
		w.handles[m] = h
		w.order = append(w.order, h)
	}
	return h
}

// isClosed reports whether the mapping was closed.
func (h *modelHandle) isClosed() bool {
	select {
	case <-h.mapping.Changed():
		return true
	default:
		return false
	}
}

func (h *modelHandle) String() string {
	return fmt.Sprint(h.spec, " of Forwarder ", h.forwarder.index)
}

// onEvent checks an event, and calls back.
func (f *modelForwarder) onEvent(e forward.Event) {
	f.callbacks.Add(1)
	defer f.callbacks.Add(-1)
	w, h := f.world, f.world.note(f, e.Mapping)
	e.Grants, e.Previous = byProtocol(e.Grants), byProtocol(e.Previous)
	w.trace("event of Forwarder %d: %v %s, it was %s: %s", f.index, e.Kind, grantsText(e.Grants), grantsText(e.Previous), e.Reason)
	w.count(e.Kind.String())
	w.mu.Lock()
	before := h.last
	if e.Kind != forward.EventFailed { // which changes nothing
		h.last = e
	}
	w.mu.Unlock()
	if e.Kind != forward.EventFailed {
		w.hold(h, e.Grants)
	}
	if why := follows(before, e); why != "" {
		w.fail("%v: %v after %v: %s", e.Mapping, e.Kind, before.Kind, why)
	}
	_, _ = e.Mapping.Grants(), e.Mapping.External()
	if w.sane() && !w.calming.Load() && e.Kind != forward.EventFailed {
		f.callBack(e)
	}
}

// callBack does what a callback may do.
func (f *modelForwarder) callBack(e forward.Event) {
	w := f.world
	rng := w.at(uint64(f.index)<<8 | uint64(e.Kind))
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rng.Int64N(int64(10*time.Second))))
	defer cancel()
	slot, spec := f.index+len(w.current())*rng.IntN(2), newModelSpec(rng)
	switch n := rng.IntN(100); {
	case n < 10:
		w.sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
	case n < 20:
		w.returned(ctx, f, "Refresh in a callback", e.Mapping.Refresh(ctx))
	case n < 28:
		_ = e.Mapping.Close()
	case n < 36:
		w.enable(ctx, slot, spec)
	case n < 38:
		w.returned(ctx, f, "Disable in a callback", f.Disable(ctx, spec.selector()))
	case n < 39 && !w.instant:
		w.shutdown(f, 5*time.Second, false)
		w.replace(f)
	}
}

// byProtocol returns grants in the order of their protocols.
func byProtocol(grants []backends.Mapping) []backends.Mapping {
	return slices.SortedFunc(slices.Values(grants), func(a, b backends.Mapping) int { return int(a.Protocol) - int(b.Protocol) })
}

// grantsText is for reports.
func grantsText(grants []backends.Mapping) string {
	var texts []string
	for _, m := range grants {
		texts = append(texts, fmt.Sprintf("%s %v %v → %v", m.Backend, m.Protocol, m.External, m.Internal))
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

// returned checks the error of a call.
func (w *modelWorld) returned(ctx context.Context, f *modelForwarder, call string, err error) {
	w.trace("Forwarder %d: %s returned %v", f.index, call, err)
	w.mu.Lock()
	closing := f.closing
	w.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		// Another caller's context may have ended what closes the same mapping.
		if ctx.Err() == nil && !strings.HasPrefix(call, "Close") && !strings.HasPrefix(call, "Disable") {
			w.fail("%s: %v, but its context has not ended", call, err)
		}
	case errors.Is(err, forward.ErrClosed) && (strings.HasPrefix(call, "Refresh") || strings.HasPrefix(call, "Enable")): // the mapping was closed
	case errors.Is(err, forward.ErrClosed) && !closing:
		w.fail("%s: %v, but the Forwarder is open", call, err)
	case !slices.ContainsFunc(modelErrors, func(e error) bool { return errors.Is(err, e) }):
		w.fail("%s: %v", call, err)
	}
}

// modelErrors are the other errors that a call may return.
var modelErrors = []error{
	backends.ErrNoReply, backends.ErrConflict, backends.ErrNotAuthorized, backends.ErrNoResources,
	backends.ErrNetworkFailure, backends.ErrUnsupported, forward.ErrNoGateway, forward.ErrNoMapping, forward.ErrClosed,
}

// modelLogger is a slog handler that is slow now and then, and reads the handles.
type modelLogger struct{ world *modelWorld }

func (l modelLogger) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}
func (l modelLogger) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l modelLogger) WithGroup(string) slog.Handler      { return l }

func (l modelLogger) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		a.Value.Resolve()
		return true
	})
	if rng := l.world.at(uint64(len(r.Message))); rng.IntN(5) == 0 {
		l.world.sleep(time.Duration(rng.Int64N(int64(20 * time.Millisecond))))
	}
	return nil
}
