package ctxsync

import (
	"context"
	"time"
)

// Priority is how urgent a request is. It travels in the context of the request, from the
// package that knows why it is made to the transport that sends it.
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

// DefaultPriority is WithPriority for a context that has no priority yet.
func DefaultPriority(ctx context.Context, p Priority) context.Context {
	if ctx.Value(contextKey{}) != nil {
		return ctx
	}
	return WithPriority(ctx, p)
}

// PriorityOf returns the priority of a context's requests: Foreground, unless
// WithPriority set another.
func PriorityOf(ctx context.Context) Priority {
	p, _ := ctx.Value(contextKey{}).(Priority)
	return p
}

type freshKey struct{}

// WithFresh returns a context whose requests do not use what a gateway told before a
// time.
func WithFresh(ctx context.Context, since time.Time) context.Context {
	return context.WithValue(ctx, freshKey{}, since)
}

// IsFresh reports whether what a gateway told at a time may be used.
func IsFresh(ctx context.Context, told time.Time) bool {
	since, _ := ctx.Value(freshKey{}).(time.Time)
	return !told.Before(since)
}
