// Package ctxsync orders and ends what runs under a context: calls that Close waits
// for, queues in which the most urgent request is the next, the priority of a request, which
// travels in its context, and a sleep.
package ctxsync
