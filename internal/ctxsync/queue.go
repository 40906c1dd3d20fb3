package ctxsync

import (
	"context"
	"slices"
	"sync"
)

// Queues is a set of queues, each with a key. In each queue, one waiter is ready at a time.
// When it leaves, the oldest of the most urgent waiters becomes ready. A queue exists while it
// has waiters. The zero value has no queues.
type Queues[K comparable] struct {
	mu      sync.Mutex
	waiters map[K][]waiter // the first waiter is ready; the others wait in order
}

type waiter struct {
	priority Priority
	ready    chan struct{}
}

// Enter adds the caller as a waiter to the queue with the key, with the priority of the
// context. The channel is closed when the caller is ready. The caller must call leave once,
// even if it does not wait for that.
func (q *Queues[K]) Enter(ctx context.Context, key K) (ready <-chan struct{}, leave func()) {
	w := waiter{PriorityOf(ctx), make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	waiters := q.waiters[key]
	if len(waiters) == 0 {
		close(w.ready)
	}
	i := len(waiters)
	for i > 1 && waiters[i-1].priority > w.priority {
		i--
	}
	if q.waiters == nil {
		q.waiters = map[K][]waiter{}
	}
	q.waiters[key] = slices.Insert(waiters, i, w)
	return w.ready, func() { q.leave(key, w) }
}

func (q *Queues[K]) leave(key K, w waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	waiters := q.waiters[key]
	i := slices.Index(waiters, w)
	waiters = slices.Delete(waiters, i, i+1)
	if len(waiters) == 0 {
		delete(q.waiters, key)
		return
	}
	q.waiters[key] = waiters
	if i == 0 {
		close(waiters[0].ready)
	}
}
