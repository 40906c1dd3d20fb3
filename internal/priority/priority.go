// Package priority orders the requests that wait for one gateway. The priority of a
// request travels in its context, from the package that knows why the request is made
// to the transport that sends it.
package priority

import (
	"context"
	"time"
)

// Priority is how urgent a request is.
type Priority uint8

// The priorities, most urgent first.
const (
	Foreground Priority = iota // a caller waits for the reply
	Delete
	Renewal
	Check
)

type contextKey struct{}

// With returns a context whose requests have the priority.
func With(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// Default is With for a context that has no priority yet.
func Default(ctx context.Context, p Priority) context.Context {
	if ctx.Value(contextKey{}) != nil {
		return ctx
	}
	return With(ctx, p)
}

// Of returns the priority of a context's requests: Foreground, unless With set
// another.
func Of(ctx context.Context) Priority {
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
