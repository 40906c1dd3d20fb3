package nat

import "github.com/natforward/goforward/forward"

// SetDiscoverConfig sets the Config of the Forwarder that the next discovery creates.
func SetDiscoverConfig(config *forward.Config) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.config = config
}

// MappingCount returns the number of mappings that g holds.
func (g *Gateway) MappingCount() int {
	ms, _ := g.held.Mappings()
	return len(ms)
}
