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

// Loop runs functions one at a time: those that are posted, timers when they are due, and
// whoever enters it, in the order in which they came. What only these use has one owner.
// They must not block. The zero Loop is ready for use.
type Loop struct {
	mu      sync.Mutex
	queue   []task
	running bool          // somebody runs on the loop
	stopped bool          // nothing more is accepted
	idle    chan struct{} // closed when nobody runs any more; nil until Stop

	timers []*Timer // the next due first; owned by the functions
	alarm  *time.Timer
	seq    uint64
}

// step is one turn of a loop.
type task struct {
	run      func()
	acquired chan struct{} // in place of run: closed when it is the turn of who waits for this
}

// Post makes the loop run f soon, on a goroutine that exists only while there is something
// to run. It never blocks. It returns false if the loop has stopped; then f is not run.
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

// Do runs f on the loop and waits for it. It returns false if the loop has stopped;
// then f is not run. It must not be called on the loop.
func (l *Loop) Do(f func()) bool {
	if !l.Acquire() {
		return false
	}
	defer l.Release()
	f()
	return true
}

// Enter waits until it is the caller's turn: until Leave, it runs on the loop. It returns
// false if the loop has stopped. It must not be called on the loop.
func (l *Loop) Acquire() bool {
	entered, ok := l.tryAcquire()
	if entered != nil {
		<-entered
	}
	return ok
}

// begin begins the caller's turn, or returns a channel that is closed when it begins.
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

// Leave is the inverse of Enter.
func (l *Loop) Release() {
	if next := l.next(); next != nil {
		go l.run(next)
	}
}

// run runs functions until nothing is left to run, or it is the turn of one who entered.
func (l *Loop) run(f func()) {
	for f != nil {
		f()
		f = l.next()
	}
}

// next ends a turn. It returns the function to run next, or nil if it is not the caller's
// to do.
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

// Stop ends the loop after what came before, and waits for that. It must be called once.
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

// Timer is a function that a loop calls at a time. The loop owns it.
type Timer struct {
	Fire func()
	at   time.Time
	seq  uint64 // orders timers that are due at the same time
}

// Arm makes the loop fire the timer at a time, in place of the time before. The zero Time
// is never.
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

// await wakes the loop when the timer is due.
func (l *Loop) setAlarm(next *Timer) {
	if wait := time.Until(next.at); l.alarm == nil {
		l.alarm = time.AfterFunc(wait, func() { l.Post(l.fireDue) })
	} else {
		l.alarm.Reset(wait)
	}
}

// fireDue runs the timers that are due, and waits for the next.
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
		o.waitingFlows[f.priority] = append(o.waitingFlows[f.priority], f)
		o.dispatch()
	}
}

// dispatch starts flows as long as there is room for them.
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

// finish ends a flow: the next of its group may run.
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

// enter takes the loop. If the owner has ended, the flow ends too: it has no state to
// change any more.
func (f *flow) enterLoop() {
	if !f.loop.Acquire() {
		runtime.Goexit()
	}
}

// off runs what blocks off the loop.
func (f *flow) offLoop(block func()) {
	f.loop.Release()
	block()
	f.enterLoop()
}

// request makes a request off the loop.
func (f *flow) request(timeout time.Duration, send func(context.Context) (backends.Mapping, error)) (m backends.Mapping, err error) {
	f.inFlight.Store(true)
	f.offLoop(func() {
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
func (o *Owner) isReply(err error) bool {
	return !errors.Is(err, backends.ErrNoReply) && o.ctx.Err() == nil
}
