package ctxsync

import (
	"context"
	"sync"
)

// Calls are the calls under way of something that can be closed. The zero Calls has none
// and is open.
type Calls struct {
	mu      sync.Mutex
	cancels map[*context.CancelCauseFunc]struct{} // of the calls under way
	running int                                   // calls that do not run a callback
	idle    *sync.Cond                            // signalled when none runs; nil until Close waits
	cause   error                                 // of Close
}

// Begin starts a call. The returned context ends with ctx and with Close. The returned
// function ends the call. After Close, Begin fails with the cause that Close was given.
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

// leave removes a call from those that run. c.mu is held.
func (c *Calls) endRunning() {
	if c.running--; c.running == 0 && c.idle != nil {
		c.idle.Broadcast()
	}
}

// Callback runs code of the caller within a call. Close does not wait for the call
// meanwhile, so that f may call it. The call's context has ended if it did.
func (c *Calls) Callback(f func()) {
	c.mu.Lock()
	c.endRunning()
	c.mu.Unlock()
	defer func() { // also if f panics
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running++
	}()
	f()
}

// Close ends the contexts of the calls under way with that cause, and waits until no
// call runs, except in a callback. It reports whether it is the first Close: a later one
// only waits.
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
