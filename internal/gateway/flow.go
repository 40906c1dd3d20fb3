package gateway

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// MaxCalls bounds the requests in flight at once to one gateway, without those that a
// caller waits for.
const MaxCalls = 8

// flow is a sequence of requests about a group, on a goroutine of its own. Between its
// requests it runs on the owner's loop, so that it can use the owner's state. The flows of
// a group run one after another.
type flow struct {
	*Owner
	group    *group
	client   *Client // whose Close waits for the flow, or nil
	priority ctxsync.Priority
	run      func(*flow)
	done     chan struct{} // closed when the flow has ended and its group is free; or nil

	ctx      context.Context //nolint:containedctx // ends when nobody wants the result any more
	requests context.Context //nolint:containedctx // the owner's, with the priority
	inFlight atomic.Bool     // a request is
}

// enqueue makes a flow run when its group is free and it is its turn.
func (o *Owner) enqueue(f *flow) {
	f.Owner = o
	if f.client != nil {
		f.client.busy++
	}
	f.group.queue = append(f.group.queue, f)
	if len(f.group.queue) == 1 {
		o.waiting[f.priority] = append(o.waiting[f.priority], f)
		o.dispatch()
	}
}

// dispatch starts flows as long as there is room for them.
func (o *Owner) dispatch() {
	for class := range o.waiting {
		for len(o.waiting[class]) > 0 && (class == int(ctxsync.Foreground) || o.running < MaxCalls) {
			f := o.waiting[class][0]
			f.ctx, f.requests = o.ctx, ctxsync.WithPriority(o.ctx, f.priority)
			if !o.spawn(func() {
				f.enter()
				f.run(f)
				o.finish(f)
				o.loop.Leave()
			}) {
				return
			}
			o.waiting[class] = o.waiting[class][1:]
			if f.priority != ctxsync.Foreground {
				o.running++
			}
		}
	}
}

// finish ends a flow: the next of its group may run.
func (o *Owner) finish(f *flow) {
	if f.priority != ctxsync.Foreground {
		o.running--
	}
	g := f.group
	if g.queue = slices.Delete(g.queue, 0, 1); len(g.queue) > 0 {
		next := g.queue[0]
		o.waiting[next.priority] = append(o.waiting[next.priority], next)
	} else {
		g.queue = nil
	}
	o.arm(g)
	g.drop()
	if f.done != nil {
		close(f.done)
	}
	if f.client != nil {
		f.client.finished()
	}
	o.dispatch()
}

// enter takes the loop. If the owner has ended, the flow ends too: it has no state to
// change any more.
func (f *flow) enter() {
	if !f.loop.Enter() {
		runtime.Goexit()
	}
}

// off runs what blocks off the loop.
func (f *flow) off(block func()) {
	f.loop.Leave()
	block()
	f.enter()
}

// request makes a request off the loop.
func (f *flow) request(timeout time.Duration, send func(context.Context) (backends.Mapping, error)) (m backends.Mapping, err error) {
	f.inFlight.Store(true)
	f.off(func() {
		ctx, cancel := bound(f.requests, timeout)
		defer cancel()
		m, err = send(ctx)
	})
	f.inFlight.Store(false)
	return m, err
}

// bound bounds a request.
func bound(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, timeout, &TimeoutError{timeout})
}

// TimeoutError is the cause of an end by one of our own bounds.
type TimeoutError struct {
	After time.Duration
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("%v within %v", backends.ErrNoReply, e.After)
}
func (e *TimeoutError) Unwrap() error { return backends.ErrNoReply }

// IsTimeout reports whether one of our own bounds ended ctx.
func IsTimeout(ctx context.Context) bool {
	var own *TimeoutError
	return errors.As(context.Cause(ctx), &own)
}

// isAnswer reports whether an error is an answer of the gateway.
func (o *Owner) isAnswer(err error) bool {
	return !errors.Is(err, backends.ErrNoReply) && o.ctx.Err() == nil
}
