package ctxsync

import (
	"context"
	"slices"
	"sync"
)

// Queues is a set of queues, each with a key. In each queue, one turn is ready at a time.
// When it ends, the oldest of the most urgent waiting turns is ready. A queue exists while it
// has turns. The zero value has no queues.
type Queues[K comparable] struct {
	mu    sync.Mutex
	turns map[K][]turn // the first turn is ready; the others wait in order
}

type turn struct {
	priority Priority
	ready    chan struct{}
}

// Enter adds a turn to the queue with the key. The turn has the priority of the context. The
// channel is closed when the turn is ready. The caller must call leave once, even if it does
// not wait until the turn is ready.
func (q *Queues[K]) Enter(ctx context.Context, key K) (ready <-chan struct{}, leave func()) {
	t := turn{PriorityOf(ctx), make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	turns := q.turns[key]
	if len(turns) == 0 {
		close(t.ready)
	}
	i := len(turns)
	for i > 1 && turns[i-1].priority > t.priority {
		i--
	}
	if q.turns == nil {
		q.turns = map[K][]turn{}
	}
	q.turns[key] = slices.Insert(turns, i, t)
	return t.ready, func() { q.leave(key, t) }
}

func (q *Queues[K]) leave(key K, t turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	turns := q.turns[key]
	i := slices.Index(turns, t)
	turns = slices.Delete(turns, i, i+1)
	if len(turns) == 0 {
		delete(q.turns, key)
		return
	}
	q.turns[key] = turns
	if i == 0 {
		close(turns[0].ready)
	}
}
