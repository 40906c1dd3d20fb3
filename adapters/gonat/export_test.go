package nat

import "github.com/natforward/goforward/forward"

// Discover makes the next discovery use a config.
func SetDiscoverConfig(config *forward.Config) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.config = config
}

// Slots is how many mappings are held.
func (g *Gateway) MappingCount() int {
	ms, _ := g.held.Mappings()
	return len(ms)
}
