package forward

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// maxWorkers bounds the attempts under way at once. A gateway is asked one
// question at a time anyway; more of them serve several gateways.
const maxWorkers = 8

// task is what a scheduler does: to look after a mapping, or what was left.
type task interface {
	// attend does it, when it is due.
	attend(ctx context.Context)
	place() *job
}

// scheduler does what is due: one for all tasks of a Forwarder.
type scheduler struct {
	mu      sync.Mutex
	tasks   tasks
	puts    uint64
	working int
	wake    chan struct{}
}

// job is a task's place on the scheduler's list, which guards it.
type job struct {
	at    time.Time
	put   uint64 // of what is due at one time, the first to be put there goes first
	index int    // in the heap, plus one; 0 is not on the list
}

// set puts a task on the list, or moves it there.
func (s *scheduler) set(t task, at time.Time) {
	s.mu.Lock()
	s.put(t, at)
	s.mu.Unlock()
	nudge(s.wake)
}

// hasten is set, but never puts off what is due sooner.
func (s *scheduler) hasten(t task, at time.Time) {
	s.mu.Lock()
	if j := t.place(); j.index == 0 || at.Before(j.at) {
		s.put(t, at)
	}
	s.mu.Unlock()
	nudge(s.wake)
}

// put is set with s.mu held.
func (s *scheduler) put(t task, at time.Time) {
	s.puts++
	j := t.place()
	j.at, j.put = at, s.puts
	if j.index == 0 {
		heap.Push(&s.tasks, t)
	} else {
		heap.Fix(&s.tasks, j.index-1)
	}
}

// unset takes a task off the list.
func (s *scheduler) unset(t task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := t.place(); j.index != 0 {
		heap.Remove(&s.tasks, j.index-1)
	}
}

// run does what is due until the context ends, and waits for what it started.
func (s *scheduler) run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		t, wait := s.take(time.Now())
		if t != nil {
			workers.Go(func() {
				t.attend(ctx)
				s.mu.Lock()
				s.working--
				s.mu.Unlock()
				nudge(s.wake)
			})
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// take takes a task that is due off the list, or returns how long to wait.
func (s *scheduler) take(now time.Time) (task, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tasks) == 0 || s.working == maxWorkers {
		return nil, time.Hour
	}
	if wait := s.tasks[0].place().at.Sub(now); wait > 0 {
		return nil, wait
	}
	s.working++
	return heap.Pop(&s.tasks).(task), 0 //nolint:forcetypeassert // tasks holds nothing else
}

// tasks is a heap, the next due first.
type tasks []task

func (ts tasks) Len() int { return len(ts) }

func (ts tasks) Less(a, b int) bool {
	x, y := ts[a].place(), ts[b].place()
	if c := x.at.Compare(y.at); c != 0 {
		return c < 0
	}
	return x.put < y.put
}

func (ts tasks) Swap(a, b int) {
	ts[a], ts[b] = ts[b], ts[a]
	ts[a].place().index, ts[b].place().index = a+1, b+1
}

// Push is for package heap.
func (ts *tasks) Push(x any) {
	t := x.(task) //nolint:forcetypeassert // tasks holds nothing else
	t.place().index = len(*ts) + 1
	*ts = append(*ts, t)
}

// Pop is for package heap.
func (ts *tasks) Pop() any {
	last := len(*ts) - 1
	t := (*ts)[last]
	t.place().index = 0
	(*ts)[last] = nil
	*ts = (*ts)[:last]
	return t
}

// jitter returns a random duration from 0 to d.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d) //nolint:gosec // no secret
}
