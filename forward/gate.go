package forward

import (
	"context"
	"sync"
)

// gate counts who is inside, and lets others wait until nobody is.
type gate struct {
	mu     sync.Mutex
	inside int
	empty  chan struct{} // closed when the last one leaves
}

func (g *gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside++; g.inside == 1 {
		g.empty = make(chan struct{})
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 {
		close(g.empty)
	}
}

// wait waits until nobody is inside, or the context ends.
func (g *gate) wait(ctx context.Context) {
	g.mu.Lock()
	inside, empty := g.inside, g.empty
	g.mu.Unlock()
	if inside == 0 {
		return
	}
	select {
	case <-empty:
	case <-ctx.Done():
	}
}
