package gateway

import (
	"container/heap"
	"sync"
	"time"
)

// Loop is a goroutine that owns state: it runs posted functions and due timers, one at
// a time, in the order in which they were posted. Functions on the loop must not block.
// NewLoop makes one.
type Loop struct {
	mu      sync.Mutex
	queue   []func()
	stopped bool // the loop accepts nothing more
	wake    chan struct{}
	ended   chan struct{}

	timers timers // owned by the loop
	armed  uint64
}

// NewLoop returns a loop that has not been started: what is posted waits for that.
func NewLoop() *Loop {
	return &Loop{wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// Start starts the goroutine. It ends after Stop.
func (l *Loop) Start() { go l.run() }

// Post makes the loop run f soon. It never blocks. It returns false if the loop has
// stopped; then f is not run.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	accepted := !l.stopped
	if accepted {
		l.queue = append(l.queue, f)
	}
	l.mu.Unlock()
	if accepted {
		l.nudge()
	}
	return accepted
}

// Do runs f on the loop and waits for it. It returns false if the loop has stopped;
// then f is not run. It must not be called on the loop.
func (l *Loop) Do(f func()) bool {
	done := make(chan struct{})
	if !l.Post(func() { f(); close(done) }) {
		return false
	}
	<-done
	return true
}

// Stop makes the loop end after the functions that were posted before. It must be
// called once.
func (l *Loop) Stop() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
	l.nudge()
}

// Ended is closed when the loop has ended.
func (l *Loop) Ended() <-chan struct{} { return l.ended }

func (l *Loop) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *Loop) run() {
	defer close(l.ended)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.mu.Lock()
		queue, stopped := l.queue, l.stopped
		l.queue = nil
		l.mu.Unlock()
		for _, f := range queue {
			f()
		}
		wait := l.fireDue()
		if len(queue) > 0 {
			continue
		}
		if stopped {
			return
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-l.wake:
		}
	}
}

// fireDue runs the timers that are due, and returns how long to wait for the next.
func (l *Loop) fireDue() time.Duration {
	now := time.Now()
	for len(l.timers) > 0 {
		t := l.timers[0]
		if wait := t.job().at.Sub(now); wait > 0 {
			return wait
		}
		l.Disarm(t)
		t.Fire()
	}
	return time.Hour
}

// Timer is a task that the loop runs at a time.
type Timer interface {
	Fire()
	job() *Job
}

// Job is the part of a Timer that the loop owns. It is embedded in the Timer.
type Job struct {
	at    time.Time
	armed uint64 // orders timers that are due at the same time
	index int32  // in the heap, plus one; 0: not armed
}

func (j *Job) job() *Job { return j }

// Arm makes the loop fire the timer at a time, in place of the time before.
func (l *Loop) Arm(t Timer, at time.Time) {
	l.armed++
	j := t.job()
	j.at, j.armed = at, l.armed
	if j.index == 0 {
		heap.Push(&l.timers, t)
	} else {
		heap.Fix(&l.timers, int(j.index-1))
	}
}

// ArmSooner is Arm if the timer is not armed or at is earlier.
func (l *Loop) ArmSooner(t Timer, at time.Time) {
	if j := t.job(); j.index == 0 || at.Before(j.at) {
		l.Arm(t, at)
	}
}

// Disarm keeps the timer from firing.
func (l *Loop) Disarm(t Timer) {
	if j := t.job(); j.index != 0 {
		heap.Remove(&l.timers, int(j.index-1))
	}
}

// timers is a heap, the next due first.
type timers []Timer

func (ts timers) Len() int { return len(ts) }

func (ts timers) Less(a, b int) bool {
	x, y := ts[a].job(), ts[b].job()
	if c := x.at.Compare(y.at); c != 0 {
		return c < 0
	}
	return x.armed < y.armed
}

func (ts timers) Swap(a, b int) {
	ts[a], ts[b] = ts[b], ts[a]
	ts[a].job().index, ts[b].job().index = int32(a+1), int32(b+1)
}

// Push is for package heap.
func (ts *timers) Push(x any) {
	t := x.(Timer) //nolint:forcetypeassert // timers holds nothing else
	t.job().index = int32(len(*ts) + 1)
	*ts = append(*ts, t)
}

// Pop is for package heap.
func (ts *timers) Pop() any {
	last := len(*ts) - 1
	t := (*ts)[last]
	t.job().index = 0
	(*ts)[last] = nil
	*ts = (*ts)[:last]
	return t
}
