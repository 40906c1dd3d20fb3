package nat

import (
	"context"
	"fmt"
	"sync"

	"github.com/natforward/goforward/forward"
)

// shared is what DiscoverGateway returns, made when first needed: programs that
// discover again when something went wrong never close what they had.
var shared struct {
	mu      sync.Mutex
	config  *forward.Config // of tests
	gateway *Gateway
}

// DiscoverGateway finds the gateway that leads to the internet, and returns as
// soon as it answered. It fails with ErrNoNATFound, and with why. Within a
// process it returns the same *[Gateway] until that is closed, so that to
// discover again costs little and loses nothing.
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

// DiscoverNATs is DiscoverGateway on a channel: it has one NAT or none, and is
// closed after it. There is no need to read it to the end.
func DiscoverNATs(ctx context.Context) <-chan NAT {
	nats := make(chan NAT, 1)
	go func() { // ends with the discovery, which is bounded
		defer close(nats)
		if nat, err := DiscoverGateway(ctx); err == nil {
			nats <- nat
		}
	}()
	return nats
}

// Close closes what DiscoverGateway returns, if there is something: a program
// does that when it ends. Later, DiscoverGateway begins anew.
func Close() error {
	shared.mu.Lock()
	g := shared.gateway
	shared.mu.Unlock()
	if g == nil {
		return nil
	}
	return g.Close()
}

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

// unshare makes the next discovery begin anew.
func (g *Gateway) clearShared() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.gateway == g {
		shared.gateway = nil
	}
}
