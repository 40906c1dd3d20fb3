package ctxsync

import (
	"context"
	"time"
)

// Priority is the urgency of a request. The context of the request carries it from the
// package that knows the purpose to the transport that sends the request.
type Priority uint8

// The priorities, most urgent first.
const (
	Foreground Priority = iota // a caller waits for the reply
	Delete
	Renewal
	Check
)

type contextKey struct{}

// WithPriority returns a context whose requests have the priority.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// DefaultPriority is WithPriority for a context without a priority. A context with a priority
// is returned unchanged.
func DefaultPriority(ctx context.Context, p Priority) context.Context {
	if ctx.Value(contextKey{}) != nil {
		return ctx
	}
	return WithPriority(ctx, p)
}

// PriorityOf returns the priority of a context's requests. The default is Foreground.
func PriorityOf(ctx context.Context) Priority {
	p, _ := ctx.Value(contextKey{}).(Priority)
	return p
}

type lossKnownKey struct{}

// WithLossKnown returns a context for the renewal of a mapping that the gateway has lost, as
// the caller knows.
func WithLossKnown(ctx context.Context) context.Context {
	return context.WithValue(ctx, lossKnownKey{}, true)
}

// IsLossKnown reports whether the caller knows that the gateway has lost the mapping.
func IsLossKnown(ctx context.Context) bool { return ctx.Value(lossKnownKey{}) != nil }

type freshKey struct{}

// WithFresh returns a context whose requests do not use information that was received from a
// gateway before the given time.
func WithFresh(ctx context.Context, since time.Time) context.Context {
	return context.WithValue(ctx, freshKey{}, since)
}

// IsFresh reports whether a request may use information that was received at the given time.
func IsFresh(ctx context.Context, received time.Time) bool {
	since, _ := ctx.Value(freshKey{}).(time.Time)
	return !received.Before(since)
}
