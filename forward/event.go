package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/reach"
)

// EventKind is the kind of an Event.
type EventKind uint8

// The kinds of Event.
const (
	// EventMapped means that the mapping was granted for the first time.
	EventMapped EventKind = iota + 1
	// EventChanged means that the mapping was granted with another external address or port,
	// or with another internal port or gateway.
	EventChanged
	// EventLost means that the gateway no longer has the mapping, as far as the Forwarder can
	// tell. It is requested again.
	EventLost
	// EventRestored means that the mapping was granted again after EventLost, possibly with
	// another external address or port.
	EventRestored
	// EventFailed means that a request in the background or of Refresh failed, for another
	// reason than the request before. Reasons that differ only in numbers count as the same.
	// The mapping is active if it has grants, and it is requested again.
	EventFailed
	// EventVerified means that a verification in the background proved that the internet reaches
	// the mapping: for the first time with this endpoint, or again after EventUnreachable.
	EventVerified
	// EventUnreachable means that verifications in the background failed for ten seconds. If the
	// mapping was proven reachable before, it was then deleted and requested again, and is still
	// unreachable. The gateway still has the mapping, and it is verified again after
	// Config.VerifyEvery.
	EventUnreachable
)

// String returns the name of the kind in lower case.
func (k EventKind) String() string {
	if k < EventMapped || k > EventUnreachable {
		return fmt.Sprintf("event %d", uint8(k))
	}
	return [...]string{EventMapped: "mapped", EventChanged: "changed", EventLost: "lost", EventRestored: "restored", EventFailed: "failed", EventVerified: "verified", EventUnreachable: "unreachable"}[k]
}

// Event describes a change of a mapping.
type Event struct {
	Kind    EventKind
	Mapping *Mapping
	// Grants and Previous are the mappings that were granted after and before the event: one
	// for each protocol and port, or none.
	Grants, Previous []backends.Mapping
	// Reason describes the cause of the event.
	Reason string
	// Time is the time of the event.
	Time time.Time
	// Result is what was measured, for EventVerified and EventUnreachable.
	Result reach.Result
}

// These constants limit the queue of calls to a slow OnEvent or log handler. The limit is
// maxQueued, or maxQueuedPerMapping for each mapping if that is more. It depends on the
// number of mappings because a restart of the gateway makes two events of each at once. If
// the queue is full, the oldest call is dropped. The methods of Mapping return the current
// values even then.
const (
	maxQueued           = 1024
	maxQueuedPerMapping = 8
)

// dispatcher calls OnEvent and the log handler of the user in the order of the events. Its
// goroutine exists only while the queue is not empty.
type dispatcher struct {
	log          *slog.Logger // the user's logger
	openMappings atomic.Int64 // the number of open mappings

	mu      sync.Mutex
	queue   []func()      // calls of OnEvent and of log handlers
	idle    chan struct{} // closed when the goroutine ends; nil: there is no goroutine
	dropped int           // calls dropped since the last delivery
	closed  bool
}

// push adds a call to the queue. It never blocks.
func (d *dispatcher) push(call func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	if len(d.queue) >= max(maxQueued, maxQueuedPerMapping*int(d.openMappings.Load())) {
		d.queue = d.queue[1:]
		d.dropped++
	}
	d.queue = append(d.queue, call)
	if d.idle == nil {
		d.idle = make(chan struct{})
		go d.run(d.idle)
	}
}

// run makes the queued calls.
func (d *dispatcher) run(idle chan struct{}) {
	defer close(idle)
	for {
		d.mu.Lock()
		queue, dropped := d.queue, d.dropped
		d.queue, d.dropped = nil, 0
		if len(queue) == 0 {
			d.idle = nil
		}
		d.mu.Unlock()
		if len(queue) == 0 {
			return
		}
		if dropped > 0 {
			d.warn("OnEvent or the log handler is too slow: messages are dropped", "dropped", dropped)
		}
		for _, call := range queue {
			call()
		}
	}
}

// deliver calls onEvent, unless the dispatcher is closed. It recovers from a panic.
func (d *dispatcher) deliver(e Event, onEvent func(Event)) {
	defer func() {
		if p := recover(); p != nil {
			d.warn("OnEvent panicked", "event", e.Kind.String(), "panic", p)
		}
	}()
	if !d.isClosed() {
		onEvent(e)
	}
}

// warn logs directly. It must run on the dispatcher's goroutine.
func (d *dispatcher) warn(text string, args ...any) {
	defer func() { _ = recover() }() // a log handler may panic
	d.log.Warn(text, args...)
}

func (d *dispatcher) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

// callbackTimeout is how long close waits for a callback to return. It must be limited
// because the callback itself may call Close.
const callbackTimeout = 100 * time.Millisecond

// close drops the queued calls and waits for the present call, up to callbackTimeout.
func (d *dispatcher) close() {
	d.mu.Lock()
	d.closed = true
	idle := d.idle
	d.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-time.After(callbackTimeout):
	}
}

// queueHandler is a slog.Handler that queues records for the user's handler.
type queueHandler struct {
	dispatcher *dispatcher
	handler    slog.Handler
}

func (h queueHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.handler.Enabled(ctx, l)
}

func (h queueHandler) Handle(_ context.Context, r slog.Record) error {
	r = r.Clone()
	h.dispatcher.push(func() {
		defer func() { _ = recover() }()
		_ = h.handler.Handle(context.Background(), r)
	})
	return nil
}

func (h queueHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return queueHandler{h.dispatcher, h.handler.WithAttrs(attrs)}
}

func (h queueHandler) WithGroup(name string) slog.Handler {
	return queueHandler{h.dispatcher, h.handler.WithGroup(name)}
}

// sink implements gateway.Sink for a Forwarder. Owners of gateways call its methods, which
// never block.
type sink struct{ *Forwarder }

var _ gateway.Sink = sink{}

// HandleChanged logs an event and queues it for OnEvent.
func (s sink) HandleChanged(h *gateway.Handle, kind gateway.Kind, before, after []backends.Mapping, reason string, at time.Time) {
	s.store.renewed.Store(true)
	if kind == 0 {
		return
	}
	s.store.requestWrite()
	m := h.Mapping.(*Mapping) //nolint:forcetypeassert // addMapping sets it to a *Mapping
	s.send(Event{Kind: EventKind(kind), Mapping: m, Grants: after, Previous: before, Reason: reason, Time: at})
}

// send logs an event and queues it for OnEvent. It never blocks.
func (f *Forwarder) send(e Event) {
	level := slog.LevelInfo
	if e.Kind == EventFailed || e.Kind == EventUnreachable {
		level = slog.LevelWarn
	}
	if f.log.Enabled(context.Background(), level) {
		f.log.Log(context.Background(), level, "mapping "+e.Kind.String(), "mapping", e.Mapping.String(), "reason", e.Reason)
	}
	for _, call := range []func(Event){f.config.OnEvent, e.Mapping.onChange} {
		if call != nil {
			f.dispatcher.push(func() { f.dispatcher.deliver(e, call) })
		}
	}
}

// CombineErrors makes one error of several.
func (s sink) CombineErrors(attempts []error, gw netip.Addr, requested *gateway.Spec) error {
	return newError(situation{attempts: attempts, config: &s.config, gateway: gw, spec: requested, replied: requested != nil})
}

// RecordsChanged requests a write of the state file, and closes routes that are no longer in
// use.
func (s sink) RecordsChanged() {
	s.store.requestWrite()
	s.loop.Post(s.closeUnusedRoutes)
}

// Handler returns a handler that queues log records.
func (s sink) Handler() slog.Handler { return s.log.Handler() }
