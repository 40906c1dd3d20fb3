package nat

import "github.com/natforward/goforward/forward"

// Discover makes the next discovery use a config.
func Discover(config *forward.Config) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.config = config
}

// Slots is how many mappings are held or asked for.
func (g *Gateway) Slots() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.slots)
}
