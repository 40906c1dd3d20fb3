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

// scheduler does what is due: one for all mappings of a Forwarder.
type scheduler struct {
	mu      sync.Mutex
	jobs    jobs
	puts    uint64
	working int
	wake    chan struct{}
}

// job is a mapping's place on the scheduler's list.
type job struct {
	at    time.Time
	put   uint64 // of what is due at one time, the first to be put there goes first
	index int    // in the heap, plus one; 0 is not on the list
}

// set puts a mapping on the list, or moves it there.
func (s *scheduler) set(m *Mapping, at time.Time) {
	s.mu.Lock()
	s.put(m, at)
	s.mu.Unlock()
	nudge(s.wake)
}

// hasten is set, but never puts off what is due sooner.
func (s *scheduler) hasten(m *Mapping, at time.Time) {
	s.mu.Lock()
	if m.job.index == 0 || at.Before(m.job.at) {
		s.put(m, at)
	}
	s.mu.Unlock()
	nudge(s.wake)
}

// put is set with s.mu held.
func (s *scheduler) put(m *Mapping, at time.Time) {
	s.puts++
	m.job.at, m.job.put = at, s.puts
	if m.job.index == 0 {
		heap.Push(&s.jobs, m)
	} else {
		heap.Fix(&s.jobs, m.job.index-1)
	}
}

// unset takes a mapping off the list.
func (s *scheduler) unset(m *Mapping) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.job.index != 0 {
		heap.Remove(&s.jobs, m.job.index-1)
	}
}

// run does what is due until the context ends, and waits for what it started.
func (s *scheduler) run(ctx context.Context, attend func(context.Context, *Mapping)) {
	var workers sync.WaitGroup
	defer workers.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		m, wait := s.take(time.Now())
		if m != nil {
			workers.Go(func() {
				attend(ctx, m)
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

// take takes a mapping that is due off the list, or returns how long to wait.
func (s *scheduler) take(now time.Time) (*Mapping, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs) == 0 || s.working == maxWorkers {
		return nil, time.Hour
	}
	if wait := s.jobs[0].job.at.Sub(now); wait > 0 {
		return nil, wait
	}
	s.working++
	return heap.Pop(&s.jobs).(*Mapping), 0 //nolint:forcetypeassert // jobs holds nothing else
}

// jobs is a heap of mappings, the next due first.
type jobs []*Mapping

func (j jobs) Len() int { return len(j) }

func (j jobs) Less(a, b int) bool {
	if c := j[a].job.at.Compare(j[b].job.at); c != 0 {
		return c < 0
	}
	return j[a].job.put < j[b].job.put
}

func (j jobs) Swap(a, b int) {
	j[a], j[b] = j[b], j[a]
	j[a].job.index, j[b].job.index = a+1, b+1
}

// Push is for package heap.
func (j *jobs) Push(x any) {
	m := x.(*Mapping) //nolint:forcetypeassert // jobs holds nothing else
	m.job.index = len(*j) + 1
	*j = append(*j, m)
}

// Pop is for package heap.
func (j *jobs) Pop() any {
	last := len(*j) - 1
	m := (*j)[last]
	m.job.index = 0
	(*j)[last] = nil
	*j = (*j)[:last]
	return m
}

// jitter returns a random duration from 0 to d.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d) //nolint:gosec // no secret
}
