package ctxsync

import (
	"context"
	"slices"
	"sync"
)

// Queues are queues with a key each. In each queue one turn is ready at a time: it is
// followed by the oldest of the most urgent turns that wait. A queue exists while it
// has turns. The zero value has no queues.
type Queues[K comparable] struct {
	mu    sync.Mutex
	turns map[K][]turn // the first is ready, and the others wait in their order
}

type turn struct {
	priority Priority
	ready    chan struct{}
}

// Enter adds a turn, with the priority of the context, to the queue with the key. The
// channel is closed when the turn is ready. The caller must call leave once, even if
// it does not wait for that.
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
