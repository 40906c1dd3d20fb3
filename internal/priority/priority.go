// Package priority orders the requests that wait for one gateway. The priority of a
// request travels in its context, from the package that knows why the request is made
// to the transport that sends it.
package priority

import "context"

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
