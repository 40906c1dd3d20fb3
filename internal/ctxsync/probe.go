package ctxsync

import (
	"context"
	"time"
)

// Probe connects the request of a probe with the code that compares several probes. The
// context of the request carries it. The zero Probe has no effect.
type Probe struct {
	// Repeat is closed when the request shall be repeated at once. A request is repeated early
	// only once.
	Repeat <-chan struct{}
	// Sent is called after the request was transmitted. It must not block.
	Sent func()
	// Replied is called when the gateway has replied to a part of the probe, with the time from
	// the first transmission to the reply. It must not block.
	Replied func(roundTrip time.Duration)
}

type probeKey struct{}

// WithProbe returns a context whose requests belong to the probe.
func WithProbe(ctx context.Context, p Probe) context.Context {
	return context.WithValue(ctx, probeKey{}, p)
}

// Repeat returns the channel Repeat of the probe to which a request belongs. It is nil if the
// request belongs to none.
func Repeat(ctx context.Context) <-chan struct{} {
	p, _ := ctx.Value(probeKey{}).(Probe)
	return p.Repeat
}

// Sent calls Sent of the probe to which a request belongs, if there is one.
func Sent(ctx context.Context) {
	if p, _ := ctx.Value(probeKey{}).(Probe); p.Sent != nil {
		p.Sent()
	}
}

// Replied calls Replied of the probe to which a request belongs, if there is one.
func Replied(ctx context.Context, roundTrip time.Duration) {
	if p, _ := ctx.Value(probeKey{}).(Probe); p.Replied != nil {
		p.Replied(roundTrip)
	}
}
