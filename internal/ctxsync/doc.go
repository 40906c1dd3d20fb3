// Package ctxsync orders and ends what runs under a context: calls that Close waits
// for, queues in which the most urgent request is the next, and the priority of a request,
// which travels in its context.
package ctxsync
