package forward

import (
	"context"
	"sync"
)

// turn is a lock that waits no longer than a context. The zero value is free. A
// channel of capacity 1 would do, and take 96 bytes more for every mapping, of
// which next to none is ever waited for.
type turn struct {
	mu    sync.Mutex
	taken bool
	freed chan struct{} // closed when it may be free; made by who waits
}

// take waits for the turn, or returns the cause of the context's end.
func (t *turn) take(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		freed, ok := t.try()
		if ok {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// try takes the turn if it is free, or returns what to wait for.
func (t *turn) try() (freed <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.taken {
		t.taken = true
		return nil, true
	}
	if t.freed == nil {
		t.freed = make(chan struct{})
	}
	return t.freed, false
}

// give ends a turn.
func (t *turn) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken = false
	if t.freed != nil {
		close(t.freed)
		t.freed = nil
	}
}
