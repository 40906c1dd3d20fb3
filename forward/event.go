package forward

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// EventKind is what happened to a mapping.
type EventKind uint8

// The kinds of Event.
const (
	// EventMapped: granted for the first time.
	EventMapped EventKind = iota + 1
	// EventChanged: granted again with another external address or port, or on
	// another internal port or gateway.
	EventChanged
	// EventLost: the gateway has it no more, as far as we know. It is asked for again.
	EventLost
	// EventRestored: granted again after Lost, possibly with another external address
	// or port.
	EventRestored
	// EventFailed: a request in the background or of Refresh failed, for another reason
	// than the one before. Reasons that differ in numbers only are the same. The mapping
	// stands if it has grants, and is requested again.
	EventFailed
)

// String names the kind in lower case.
func (k EventKind) String() string {
	switch k {
	case EventMapped:
		return "mapped"
	case EventChanged:
		return "changed"
	case EventLost:
		return "lost"
	case EventRestored:
		return "restored"
	case EventFailed:
		return "failed"
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// Event tells that something happened to a mapping.
type Event struct {
	Kind    EventKind
	Mapping *Mapping
	// Grants and Previous are what was granted after and before: one mapping for each
	// protocol and port, or none.
	Grants, Previous []backends.Mapping
	// Reason says how it came.
	Reason string
	// Time is when.
	Time time.Time
}

// What waits for a slow OnEvent or log handler is bounded: by a number, or by a few for
// each mapping if that is more, since a gateway that restarts makes two events of each
// at once. The oldest is dropped. What Mapping's methods tell is right whatever is lost
// here.
const (
	maxQueued           = 1024
	maxQueuedPerMapping = 8
)

// dispatcher calls what the user gave, OnEvent and a log handler, in the order of what
// happened. Its goroutine exists only while something waits.
type dispatcher struct {
	log      *slog.Logger // the user's
	mappings atomic.Int64 // that are held

	mu      sync.Mutex
	queue   []func()      // calls of OnEvent and of log handlers
	idle    chan struct{} // closed when the goroutine ends; nil: there is none
	dropped int           // since the last that was delivered
	closed  bool
}

// push queues a call. It never blocks.
func (d *dispatcher) push(call func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	if len(d.queue) >= max(maxQueued, maxQueuedPerMapping*int(d.mappings.Load())) {
		d.queue = d.queue[1:]
		d.dropped++
	}
	d.queue = append(d.queue, call)
	if d.idle == nil {
		d.idle = make(chan struct{})
		go d.run(d.idle)
	}
}

// run makes the calls that wait.
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

// deliver calls OnEvent, unless the dispatcher is closed, and survives a panic in it.
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

// warn logs on the dispatcher's own goroutine.
func (d *dispatcher) warn(text string, args ...any) {
	defer func() { _ = recover() }() // of a handler
	d.log.Warn(text, args...)
}

func (d *dispatcher) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

// callbackTime is how long close waits for a callback that has not returned. It may be
// the callback that closes.
const callbackTimeout = 100 * time.Millisecond

// close drops the events that wait, and waits a moment for the callback in flight.
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

// queueHandler queues log records for the user's handler.
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

// The Forwarder is a gateway.Sink: these methods are for the owners of gateways, and
// never block.
type sink struct{ *Forwarder }

var _ gateway.Sink = sink{}

// Happened logs an event, and queues it for OnEvent.
func (s sink) HandleChanged(h *gateway.Handle, kind gateway.Kind, before, after []backends.Mapping, reason string, at time.Time) {
	s.store.renewed.Store(true)
	if kind == 0 {
		return
	}
	s.store.requestWrite()
	e := Event{Kind: EventKind(kind), Mapping: h.Mapping.(*Mapping), Grants: after, Previous: before, Reason: reason, Time: at} //nolint:forcetypeassert // our handles are mappings
	level := slog.LevelInfo
	if e.Kind == EventFailed {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "mapping "+e.Kind.String(), "mapping", e.Mapping.String(), "reason", reason)
	for _, call := range []func(Event){s.config.OnEvent, e.Mapping.onChange} {
		if call != nil {
			s.dispatcher.push(func() { s.dispatcher.deliver(e, call) })
		}
	}
}

// Failure makes one error of several.
func (s sink) CombineErrors(attempts []error, probe bool) error {
	return newError(attempts, !probe || s.config.Gateway.IsValid())
}

// RecordsChanged tells that the state file is to be written, or that a gateway may be out of
// use.
func (s sink) RecordsChanged() {
	s.store.requestWrite()
	s.loop.Post(s.closeUnusedRoutes)
}

// Handler queues log records.
func (s sink) Handler() slog.Handler { return s.log.Handler() }
