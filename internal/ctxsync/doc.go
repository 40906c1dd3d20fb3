// Package ctxsync has tools for requests under a context: calls that Close waits for, queues
// ordered by priority, the priority of a request and the probe to which it belongs, which its
// context carries, and a sleep.
package ctxsync
