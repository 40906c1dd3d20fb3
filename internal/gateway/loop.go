package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Loop runs functions one at a time: posted functions, timers that are due, and callers that
// acquire it. It runs them in the order in which they arrive. Data that only these functions
// use needs no lock. The functions must not block. The zero Loop is ready for use.
type Loop struct {
	mu      sync.Mutex
	queue   []task
	running bool          // a function or a caller runs on the loop
	stopped bool          // Post and Acquire fail
	idle    chan struct{} // closed when nothing runs any more; nil until Stop

	timers []*Timer // sorted by time; only code on the loop uses it
	alarm  *time.Timer
	seq    uint64
}

// task is an element of a loop's queue: a function to run, or a caller that waits for the
// loop.
type task struct {
	run      func()
	acquired chan struct{} // closed when the waiting caller may run; nil if run is set
}

// Post queues f and returns at once. A goroutine runs the queue; it exists only while the
// queue is not empty. Post returns false, and f does not run, if the loop has stopped.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	if l.running {
		l.queue = append(l.queue, task{run: f})
	} else {
		l.running = true
		go l.run(f)
	}
	return true
}

// Do runs f on the loop and waits until it returns. Do returns false, and f does not run, if
// the loop has stopped. Code on the loop must not call Do.
func (l *Loop) Do(f func()) bool {
	if !l.Acquire() {
		return false
	}
	defer l.Release()
	f()
	return true
}

// Acquire waits until the caller may run on the loop. The caller then runs on the loop until
// it calls Release. Acquire returns false if the loop has stopped. Code on the loop must not
// call Acquire.
func (l *Loop) Acquire() bool {
	entered, ok := l.tryAcquire()
	if entered != nil {
		<-entered
	}
	return ok
}

// tryAcquire acquires a free loop. If the loop is in use, tryAcquire returns a channel that
// is closed when the caller may run. It returns false if the loop has stopped.
func (l *Loop) tryAcquire() (entered chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.stopped:
		return nil, false
	case l.running:
		entered = make(chan struct{})
		l.queue = append(l.queue, task{acquired: entered})
	}
	l.running = true
	return entered, true
}

// Release ends what Acquire began. The next task in the queue may run.
func (l *Loop) Release() {
	if next := l.next(); next != nil {
		go l.run(next)
	}
}

// run calls functions until the queue is empty or its next task is a caller that waits in
// Acquire.
func (l *Loop) run(f func()) {
	for f != nil {
		f()
		f = l.next()
	}
}

// next ends the current task. It returns the next function to run. It returns nil if the
// queue is empty, or after it has passed the loop to a caller that waits in Acquire.
func (l *Loop) next() func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.queue, l.running = nil, false
		if l.idle != nil {
			close(l.idle)
		}
		return nil
	}
	s := l.queue[0]
	l.queue[0] = task{}
	if l.queue = l.queue[1:]; s.acquired != nil {
		close(s.acquired)
	}
	return s.run
}

// Stop stops the loop after the tasks that are already queued, and waits for them. It must be
// called once.
func (l *Loop) Stop() {
	l.mu.Lock()
	l.stopped = true
	running := l.running
	if running {
		l.idle = make(chan struct{})
	}
	l.mu.Unlock()
	if running {
		<-l.idle
	}
	if l.alarm != nil {
		l.alarm.Stop()
	}
}

// Timer is a function that a loop calls at a set time. Only code on that loop may use it.
type Timer struct {
	Fire func()
	at   time.Time
	seq  uint64 // orders timers with the same time
}

// Arm sets the time at which the loop calls t.Fire. It replaces an earlier setting. The zero
// Time disarms the timer.
func (l *Loop) Arm(t *Timer, at time.Time) {
	if i, armed := slices.BinarySearchFunc(l.timers, t, compareTimers); armed {
		l.timers = slices.Delete(l.timers, i, i+1)
	}
	l.seq++
	t.at, t.seq = at, l.seq
	if at.IsZero() {
		return
	}
	i, _ := slices.BinarySearchFunc(l.timers, t, compareTimers)
	l.timers = slices.Insert(l.timers, i, t)
	if i == 0 {
		l.setAlarm(t)
	}
}

func compareTimers(a, b *Timer) int {
	return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.seq, b.seq))
}

// setAlarm makes the loop call fireDue when the timer is due.
func (l *Loop) setAlarm(next *Timer) {
	if wait := time.Until(next.at); l.alarm == nil {
		l.alarm = time.AfterFunc(wait, func() { l.Post(l.fireDue) })
	} else {
		l.alarm.Reset(wait)
	}
}

// fireDue calls the timers that are due, and sets the alarm for the next one.
func (l *Loop) fireDue() {
	for now := time.Now(); len(l.timers) > 0; {
		t := l.timers[0]
		if t.at.After(now) {
			l.setAlarm(t)
			return
		}
		l.Arm(t, time.Time{})
		t.Fire()
	}
}

// MaxCalls is the largest number of concurrent requests to one gateway. Requests for which a
// caller waits do not count.
const MaxCalls = 8

// flow is a sequence of requests for one group. It runs on its own goroutine. Between
// requests it runs on the owner's loop and may use the owner's state. The flows of a group
// run one after another.
type flow struct {
	*Owner
	group    *group
	client   *Client // its Close waits for the flow; may be nil
	priority ctxsync.Priority
	run      func(*flow)
	done     chan struct{} // closed when the flow has ended and its group is free; may be nil

	ctx      context.Context //nolint:containedctx // done when no caller needs the result any more
	requests context.Context //nolint:containedctx // the owner's context, with the flow's priority
	inFlight atomic.Bool     // a request is in flight
}

// enqueue adds a flow to the queue of its group.
func (o *Owner) enqueue(f *flow) {
	f.Owner = o
	if f.client != nil {
		f.client.busy++
	}
	f.group.queue = append(f.group.queue, f)
	if len(f.group.queue) == 1 {
		o.waitingFlows[f.priority] = append(o.waitingFlows[f.priority], f)
		o.dispatch()
	}
}

// dispatch starts waiting flows, in the order of their priorities. Foreground flows start at
// once. Other flows start while fewer than MaxCalls of them are running.
func (o *Owner) dispatch() {
	for class := range o.waitingFlows {
		for len(o.waitingFlows[class]) > 0 && (class == int(ctxsync.Foreground) || o.runningFlows < MaxCalls) {
			f := o.waitingFlows[class][0]
			f.ctx, f.requests = o.ctx, ctxsync.WithPriority(o.ctx, f.priority)
			if !o.spawn(func() {
				f.enterLoop()
				f.run(f)
				o.finish(f)
				o.loop.Release()
			}) {
				return
			}
			o.waitingFlows[class] = o.waitingFlows[class][1:]
			if f.priority != ctxsync.Foreground {
				o.runningFlows++
			}
		}
	}
}

// finish ends a flow. The next flow of its group may run.
func (o *Owner) finish(f *flow) {
	if f.priority != ctxsync.Foreground {
		o.runningFlows--
	}
	g := f.group
	if g.queue = slices.Delete(g.queue, 0, 1); len(g.queue) > 0 {
		next := g.queue[0]
		o.waitingFlows[next.priority] = append(o.waitingFlows[next.priority], next)
	} else {
		g.queue = nil
	}
	o.arm(g)
	g.deleteIfEmpty()
	if f.done != nil {
		close(f.done)
	}
	if f.client != nil {
		f.client.flowDone()
	}
	o.dispatch()
}

// enterLoop acquires the loop. If the owner has ended, enterLoop ends the goroutine of the
// flow, because the owner's state is no longer in use.
func (f *flow) enterLoop() {
	if !f.loop.Acquire() {
		runtime.Goexit()
	}
}

// offLoop releases the loop while it runs a function that blocks.
func (f *flow) offLoop(block func()) {
	f.loop.Release()
	block()
	f.enterLoop()
}

// request makes a request. It releases the loop while the request is in flight.
func (f *flow) request(timeout time.Duration, send func(context.Context) error) (err error) {
	f.inFlight.Store(true)
	f.offLoop(func() {
		ctx, cancel := bound(f.requests, timeout)
		defer cancel()
		err = send(ctx)
	})
	f.inFlight.Store(false)
	return err
}

// bound returns a context that ends after the timeout, with a TimeoutError as its cause.
func bound(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, timeout, &TimeoutError{timeout})
}

// TimeoutError is the cause of a context that ended because of a timeout of this library.
type TimeoutError struct {
	After time.Duration
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("%v within %v", backends.ErrNoReply, e.After)
}
func (e *TimeoutError) Unwrap() error { return backends.ErrNoReply }

// IsTimeout reports whether a timeout of this library ended ctx.
func IsTimeout(ctx context.Context) bool {
	var own *TimeoutError
	return errors.As(context.Cause(ctx), &own)
}

// isReply reports whether an error is a reply from the gateway. A missing reply, or the end
// of the owner, is not.
func (o *Owner) isReply(err error) bool {
	return !errors.Is(err, backends.ErrNoReply) && o.ctx.Err() == nil
}
