package gateway

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Loop runs functions one at a time: those that are posted, in their order, and timers
// when they are due. What only these functions use has one owner. They must not block.
// The goroutine of a Loop exists only while there is something to run. The zero Loop is
// ready for use.
type Loop struct {
	mu      sync.Mutex
	queue   []func()
	ended   chan struct{} // closed when the goroutine ends; nil: there is none
	stopped bool          // nothing more is accepted

	timers []*Timer // the next due first; owned by the functions
	alarm  *time.Timer
	armed  uint64
}

// Post makes the loop run f soon. It never blocks. It returns false if the loop has
// stopped; then f is not run.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	l.queue = append(l.queue, f)
	if l.ended == nil {
		l.ended = make(chan struct{})
		go l.run(l.ended)
	}
	return true
}

func (l *Loop) run(ended chan struct{}) {
	defer close(ended)
	for {
		l.mu.Lock()
		queue := l.queue
		if l.queue = nil; len(queue) == 0 {
			l.ended = nil
		}
		l.mu.Unlock()
		if len(queue) == 0 {
			return
		}
		for _, f := range queue {
			f()
		}
	}
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

// Stop ends the loop after what was posted before, and waits for that. It must be called
// once.
func (l *Loop) Stop() {
	l.mu.Lock()
	l.stopped = true
	ended := l.ended
	l.mu.Unlock()
	if ended != nil {
		<-ended
	}
	if l.alarm != nil {
		l.alarm.Stop()
	}
}

// Timer is a function that a loop calls at a time. The loop owns it.
type Timer struct {
	Fire  func()
	at    time.Time
	armed uint64 // orders timers that are due at the same time
}

// Arm makes the loop fire the timer at a time, in place of the time before. The zero Time
// is never.
func (l *Loop) Arm(t *Timer, at time.Time) {
	if i, armed := slices.BinarySearchFunc(l.timers, t, compareTimers); armed {
		l.timers = slices.Delete(l.timers, i, i+1)
	}
	l.armed++
	t.at, t.armed = at, l.armed
	if at.IsZero() {
		return
	}
	i, _ := slices.BinarySearchFunc(l.timers, t, compareTimers)
	l.timers = slices.Insert(l.timers, i, t)
	if i == 0 {
		l.await(t)
	}
}

func compareTimers(a, b *Timer) int {
	return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.armed, b.armed))
}

// await wakes the loop when the timer is due.
func (l *Loop) await(next *Timer) {
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
			l.await(t)
			return
		}
		l.Arm(t, time.Time{})
		t.Fire()
	}
}
