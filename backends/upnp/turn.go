package upnp

import (
	"context"
	"fmt"
	"sync"
)

// turns are queues of the whole process, by what is queued for: a device is
// asked one thing at a time, whoever asks.
var turns = struct {
	mu  sync.Mutex
	byQ map[string]*turn
}{byQ: map[string]*turn{}}

type turn struct {
	taken chan struct{} // full while somebody has it
	users int           // who have it or wait for it
}

// takeTurn waits for a turn and returns what ends it.
func takeTurn(ctx context.Context, queue string) (end func(), err error) {
	turns.mu.Lock()
	t := turns.byQ[queue]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		turns.byQ[queue] = t
	}
	t.users++
	turns.mu.Unlock()

	leave := func() {
		turns.mu.Lock()
		defer turns.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(turns.byQ, queue)
		}
	}
	select {
	case t.taken <- struct{}{}:
		return func() { <-t.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// takeTable waits until the device's table is this caller's alone, within the
// process: between looking and adding, or deleting, nobody else may do so.
func (g *gateway) takeTable(ctx context.Context) (end func(), err error) {
	end, err = takeTurn(ctx, g.Device.Host.String()+" table")
	if err != nil {
		return nil, fmt.Errorf("upnp: %w", err)
	}
	return end, nil
}
