package forward

import (
	"context"
	"log/slog"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// The Forwarder is a gateway.Sink: these methods are for the owners of gateways, and
// never block.
type sink struct{ *Forwarder }

var _ gateway.Sink = sink{}

// Happened logs an event, and queues it for OnEvent.
func (s sink) Happened(h *gateway.Handle, kind gateway.Kind, before, after []backends.Mapping, reason string, at time.Time) {
	s.store.renewed.Store(true)
	if kind == 0 {
		return
	}
	s.store.nudge()
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
func (s sink) Failure(attempts []error, probe bool) error {
	return newError(attempts, !probe || s.config.Gateway.IsValid())
}

// RecordsChanged tells that the state file is to be written, or that a gateway may be out of
// use.
func (s sink) RecordsChanged() {
	s.store.nudge()
	s.loop.Post(s.tidy)
}

// Handler queues log records.
func (s sink) Handler() slog.Handler { return s.log.Handler() }
