package nat

import (
	"context"
	"fmt"
	"sync"

	"github.com/natforward/goforward/forward"
)

// shared holds the Gateway that DiscoverGateway returns. The first call creates it. All
// later calls share it, because a program may repeat the discovery after an error without
// closing the earlier Gateway.
var shared struct {
	mu      sync.Mutex
	config  *forward.Config // nil, except in tests
	gateway *Gateway
}

// DiscoverGateway finds the gateway of the default route, and returns when it receives the
// first reply. If it fails, the error wraps ErrNoNATFound and the cause. Until the *[Gateway]
// is closed, every call in the process returns the same one. A repeated discovery is
// therefore cheap and keeps the mappings.
func DiscoverGateway(ctx context.Context) (NAT, error) {
	g, err := sharedGateway()
	if err != nil {
		return nil, err
	}
	if _, err := g.discover(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// DiscoverNATs calls DiscoverGateway in the background. The channel yields one NAT if the
// discovery succeeds, and is then closed. The caller need not read from it.
func DiscoverNATs(ctx context.Context) <-chan NAT {
	nats := make(chan NAT, 1)
	go func() { // ends with the discovery, which is bounded by a timeout
		defer close(nats)
		if nat, err := DiscoverGateway(ctx); err == nil {
			nats <- nat
		}
	}()
	return nats
}

// Close closes the Gateway that DiscoverGateway returned, if there is one. Call it before the
// program ends. After Close, DiscoverGateway creates a new Gateway.
func Close() error {
	shared.mu.Lock()
	g := shared.gateway
	shared.mu.Unlock()
	if g == nil {
		return nil
	}
	return g.Close()
}

// sharedGateway returns the shared Gateway, and creates it if there is none.
func sharedGateway() (*Gateway, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.gateway == nil {
		f, err := forward.New(shared.config)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoNATFound, err)
		}
		shared.gateway = New(f)
		shared.gateway.held.OwnedForwarder = f
	}
	return shared.gateway, nil
}

// clearShared makes the next discovery create a new Gateway, if g is the shared one.
func (g *Gateway) clearShared() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.gateway == g {
		shared.gateway = nil
	}
}
