package forward

import (
	"time"

	"github.com/natforward/goforward/internal/gateway"
)

// SetJitter replaces the source of chance that spreads renewals and retries, and with it
// the gateways that the Forwarder shares with others. Call it before the first mapping.
func (f *Forwarder) SetJitter(jitter func(time.Duration) time.Duration) {
	f.jitter, f.registry = jitter, gateway.NewRegistry(jitter)
}

// MaxWorkers bounds the attempts under way at once.
const MaxWorkers = gateway.MaxCalls

// Registry holds the gateways that Forwarders share.
type Registry = gateway.Registry

// NewRegistry returns a registry with a source of chance.
func NewRegistry(jitter func(time.Duration) time.Duration) *Registry {
	return gateway.NewRegistry(jitter)
}

// SetRegistry makes the Forwarder share gateways with others. Call it before the first
// mapping.
func (f *Forwarder) SetRegistry(r *Registry, jitter func(time.Duration) time.Duration) {
	f.jitter, f.registry = jitter, r
}
