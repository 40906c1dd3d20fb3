package gatewaytest

import (
	"sync"
	"time"
)

// clock is the router's clock.
type clock struct {
	start  time.Time
	manual bool

	mu     sync.Mutex
	offset time.Duration
}

func newClock(manual bool) *clock { return &clock{start: time.Now(), manual: manual} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manual {
		return c.start.Add(c.offset)
	}
	return time.Now().Add(c.offset)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}
