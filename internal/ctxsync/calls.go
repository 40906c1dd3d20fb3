package ctxsync

import (
	"context"
	"sync"
)

// Calls tracks the calls in progress on a value that can be closed. The zero Calls has no
// calls and is open.
type Calls struct {
	mu      sync.Mutex
	cancels map[*context.CancelCauseFunc]struct{} // of the calls in progress
	running int                                   // number of calls, except those in a callback
	idle    *sync.Cond                            // signalled when running becomes 0; nil until Close waits
	cause   error                                 // the argument of Close; nil until then
}

// Begin starts a call. The returned context ends with ctx, and when Close is called. The
// caller must call the returned function when the call ends. After Close, Begin fails with
// the cause that was passed to Close.
func (c *Calls) Begin(ctx context.Context) (context.Context, func(), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return nil, nil, c.cause
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if c.cancels == nil {
		c.cancels = map[*context.CancelCauseFunc]struct{}{}
	}
	c.cancels[&cancel] = struct{}{}
	c.running++
	return ctx, func() {
		cancel(nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.cancels, &cancel)
		c.endRunning()
	}, nil
}

// Add starts a call that needs no context. The caller must call End when the call ends. After
// Close, Add returns false.
func (c *Calls) Add() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return false
	}
	c.running++
	return true
}

// End ends a call that Add started.
func (c *Calls) End() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endRunning()
}

// endRunning decrements running. The caller holds c.mu.
func (c *Calls) endRunning() {
	if c.running--; c.running == 0 && c.idle != nil {
		c.idle.Broadcast()
	}
}

// Callback runs user code within a call. Close does not wait for the call in the meantime, so
// f may call Close. The context of the call has then ended.
func (c *Calls) Callback(f func()) {
	c.mu.Lock()
	c.endRunning()
	c.mu.Unlock()
	defer func() { // deferred because f may panic
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running++
	}()
	f()
}

// Close ends the contexts of the calls in progress with the cause. It waits until no call
// runs outside a callback. It returns true for the first Close; a later Close only waits.
func (c *Calls) Close(cause error) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first = c.cause == nil; first {
		c.cause = cause
		for cancel := range c.cancels {
			(*cancel)(cause)
		}
		c.idle = sync.NewCond(&c.mu)
	}
	for c.running > 0 {
		c.idle.Wait()
	}
	return first
}
