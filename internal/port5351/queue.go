package port5351

import (
	"net/netip"
	"sync"
)

// Priority orders those who wait for their turn at a gateway.
type Priority uint8

// The priorities, most urgent first.
const (
	Foreground Priority = iota // somebody waits for the answer
	Release                    // a deletion
	Background                 // a renewal
	priorities
)

// queue lets one at a time talk to a gateway: RFC 6886 section 3.1 asks for
// one outstanding request, and cheap gateways drop more.
type queue struct {
	mu      sync.Mutex
	holder  *turn
	waiting [priorities][]*turn

	gateway netip.AddrPort
	refs    int // guarded by links.mu
}

// turn is a place in a queue. Its ready channel is closed when it has come.
type turn struct {
	ready chan struct{}
}

// enter takes a place in the queue.
func (q *queue) enter(p Priority) *turn {
	t := &turn{ready: make(chan struct{})}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting[p] = append(q.waiting[p], t)
	q.advance()
	return t
}

// leave gives the place up, whether its turn had come or not.
func (q *queue) leave(t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.holder == t {
		q.holder = nil
		q.advance()
		return
	}
	for p, waiting := range q.waiting {
		for i, w := range waiting {
			if w == t {
				q.waiting[p] = append(waiting[:i], waiting[i+1:]...)
				return
			}
		}
	}
}

// advance gives the turn to the first of the most urgent. q.mu is held.
func (q *queue) advance() {
	if q.holder != nil {
		return
	}
	for p, waiting := range q.waiting {
		if len(waiting) > 0 {
			q.holder, q.waiting[p] = waiting[0], waiting[1:]
			close(q.holder.ready)
			return
		}
	}
}
