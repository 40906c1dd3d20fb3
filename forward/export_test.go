package forward

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/gateway"
)

// SetDefaultGateways sets the gateways of the default routes. They may use other ports than
// the protocols' own. A family without a gateway has no default route.
func (f *Forwarder) SetDefaultGateways(gateways ...netip.AddrPort) error {
	f.loop.Do(func() {
		none := func() (discover.Gateway, error) { return discover.Gateway{}, discover.ErrNoRoute }
		f.defaultRoutes = [2]func() (discover.Gateway, error){none, none}
		before := f.keyOf
		f.keyOf = func(p gatewayPath) gateway.Key {
			for _, gw := range gateways {
				if gw.Addr() == p.gateway.Addr() {
					return gateway.Key{Gateway: gw, Local: p.local}
				}
			}
			return before(p)
		}
		for _, gw := range gateways {
			local := gw.Addr() // on loopback
			f.defaultRoutes[familyOf(local)] = func() (discover.Gateway, error) {
				return discover.Gateway{Addr: local, Local: local}, nil
			}
		}
	})
	return nil
}

// SetRoute sets the gateway of the IPv4 default route, with these ready-made backends.
// If gw is invalid, there is no default route.
func (f *Forwarder) SetRoute(gw, local netip.Addr, bs ...backends.Backend) {
	if !f.started.Load() {
		f.watch = func(ctx context.Context, _ func()) error { // tests call NetworkChanged instead
			<-ctx.Done()
			return context.Cause(ctx)
		}
	}
	f.loop.Do(func() {
		f.defaultRoutes[ipv4] = func() (discover.Gateway, error) {
			if !gw.IsValid() {
				return discover.Gateway{}, discover.ErrNoRoute
			}
			return discover.Gateway{Addr: gw, Local: local, Interface: "test"}, nil
		}
		before := f.configs
		f.configs = func(p gatewayPath) []gateway.BackendConfig {
			if p.gateway.Addr() != gw {
				return before(p)
			}
			var configs []gateway.BackendConfig
			for _, b := range bs {
				configs = append(configs, gateway.BackendConfig{Ready: b})
			}
			return configs
		}
	})
}

// RouteCloseTimeout is how long a Forwarder waits at most for deletions at a gateway that is no
// longer on the default route.
const RouteCloseTimeout = routeCloseTimeout

// RouteCount returns the number of gateways for which the Forwarder has an owner.
func (f *Forwarder) RouteCount() (n int) {
	f.loop.Do(func() { n = len(f.routes) })
	return n
}

// NetworkChanged does what the network watcher does after a change.
func (f *Forwarder) NetworkChanged() { f.loop.Do(func() { f.compareRoutes("") }) }

// Crash ends a Forwarder like the end of its process: nothing is deleted.
func (f *Forwarder) Crash() { _ = f.closing.do(context.Background(), f.crash) }

func (f *Forwarder) crash() error {
	f.store.opening.Lock()
	file := f.store.file
	f.store.file, f.store.openAttempted = nil, true // nothing is written from now on
	f.store.opening.Unlock()
	f.cancel(ErrClosed)
	f.calls.Close(ErrClosed)
	f.work.Wait()
	var routes []*route
	f.loop.Do(func() {
		routes = f.routes
		for _, m := range slices.Clone(f.held) {
			f.release(m, true)
		}
	})
	for _, r := range routes {
		r.client.Discard()
	}
	f.loop.Stop()
	if file != nil {
		_ = file.Close()
	}
	f.dispatcher.close()
	return nil
}

// SetRestoreGrace shortens, for one test, how long the mappings of an earlier run are
// kept if they are not enabled again.
func SetRestoreGrace(t *testing.T, d time.Duration) {
	before := restoreGrace
	restoreGrace = d
	t.Cleanup(func() { restoreGrace = before })
}

// SetBackends sets the backends of gateways by their addresses.
func (f *Forwarder) SetBackends(at map[netip.Addr]backends.Backend) {
	f.configs = func(p gatewayPath) []gateway.BackendConfig {
		return []gateway.BackendConfig{{Ready: at[p.gateway.Addr()]}}
	}
}

// SetJitter replaces the random source of renewals and retries. The Forwarder then shares
// its gateways with no other Forwarder. Call it before the first mapping.
func (f *Forwarder) SetJitter(jitter func(time.Duration) time.Duration) {
	f.jitter, f.registry = jitter, gateway.NewRegistry(jitter)
}

// MaxCalls is the largest number of concurrent requests to a gateway.
const MaxCalls = gateway.MaxCalls

// Registry holds the gateways that Forwarders share.
type Registry = gateway.Registry

// NewRegistry returns a registry with a random source.
func NewRegistry(jitter func(time.Duration) time.Duration) *Registry {
	return gateway.NewRegistry(jitter)
}

// SetRegistry makes the Forwarder share the gateways of a registry. Call it before the
// first mapping.
func (f *Forwarder) SetRegistry(r *Registry, jitter func(time.Duration) time.Duration) {
	f.jitter, f.registry = jitter, r
}

// SetExamineTimeout sets how long a Listener waits for the first bytes of a connection that may be
// of a prober. Call it before Verify.
func (l *Listener) SetExamineTimeout(d time.Duration) { l.socket.queue.Timeout = d }
