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

// LeadTo makes the default routes lead to gateways, also to such as do not have the
// protocols' own ports. A family without one has no default route.
func (f *Forwarder) LeadTo(gateways ...netip.AddrPort) error {
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

// SetRoute makes the default route of a family lead to a gateway in memory, for which
// the backends speak. If gw is invalid there is no default route.
func (f *Forwarder) SetRoute(gw, local netip.Addr, bs ...backends.Backend) {
	if !f.started.Load() {
		f.watch = func(ctx context.Context, _ func()) error { // NetworkChanged does it
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

// LeaveTime bounds the wait for a gateway that was left.
const LeaveTime = routeCloseTimeout

// Routes is how many gateways the Forwarder has an owner for.
func (f *Forwarder) Routes() (n int) {
	f.loop.Do(func() { n = len(f.routes) })
	return n
}

// NetworkChanged does what the watcher of the network does after a change.
func (f *Forwarder) NetworkChanged() { f.loop.Do(func() { f.compareRoutes("") }) }

// Crash ends a Forwarder as the end of its process does: nothing is deleted.
func (f *Forwarder) Crash() { _ = f.closing.do(context.Background(), f.crash) }

func (f *Forwarder) crash() error {
	f.store.opening.Lock()
	file := f.store.file
	f.store.file, f.store.openAttempted = nil, true // nothing more is written
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

// SetWantedWithin shortens, for a test, what an earlier run's mappings wait.
func SetWantedWithin(t *testing.T, d time.Duration) {
	before := restoreGrace
	restoreGrace = d
	t.Cleanup(func() { restoreGrace = before })
}

// SetBackends makes gateways be in memory.
func (f *Forwarder) SetBackends(at map[netip.Addr]backends.Backend) {
	f.configs = func(p gatewayPath) []gateway.BackendConfig {
		return []gateway.BackendConfig{{Ready: at[p.gateway.Addr()]}}
	}
}
