package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/internal/netbind"
)

// registry holds the gateways of the process. All Forwarders share them.
var registry = gateway.NewRegistry(gateway.Jitter)

// Forwarder forwards ports and keeps the mappings alive. Its methods may be called by several
// goroutines at once. Create a Forwarder with New, and end it with Close or Shutdown.
type Forwarder struct {
	config        Config
	log           *slog.Logger // passes records to the dispatcher
	registry      *gateway.Registry
	jitter        func(time.Duration) time.Duration
	defaultRoutes [2]func() (discover.Gateway, error)       // returns the kernel's default route, by address family
	configs       func(gatewayPath) []gateway.BackendConfig // returns the backends for a gateway
	keyOf         func(gatewayPath) gateway.Key
	watch         func(context.Context, func()) error // watches the network for changes

	hook      atomic.Pointer[hookRoutes] // the last result of Config.Gateways, or nil
	hookCalls atomic.Uint64

	ctx        context.Context //nolint:containedctx // ends with the Forwarder; for background work only
	cancel     context.CancelCauseFunc
	work       sync.WaitGroup // the Forwarder's own goroutines
	dispatcher dispatcher
	store      store
	verifying  chan struct{} // limits the ports that are measured at once

	calls   ctxsync.Calls
	started atomic.Bool
	closing once

	// Only code on the loop uses the fields below.
	loop           gateway.Loop
	held           []*Mapping // the open mappings, in the order in which they were enabled
	routes         []*route
	current        [2]*route // the routes in use, by address family
	verifyLimit    gateway.TokenBucket
	wakeLimit      gateway.TokenBucket // for requests of mappings that are not granted
	clockTimer     gateway.Timer
	clockCheckedAt time.Time // when compareClocks ran last
}

// New creates a Forwarder. It checks the config and does no I/O. A nil config is valid. An
// error wraps backends.ErrInvalid.
func New(config *Config) (*Forwarder, error) {
	c, err := config.check()
	if err != nil {
		return nil, err
	}
	f := &Forwarder{
		config:        c,
		registry:      registry,
		jitter:        gateway.Jitter,
		defaultRoutes: [2]func() (discover.Gateway, error){discover.Default, discover.Default6},
	}
	f.configs, f.keyOf, f.watch = f.backendConfigs, gatewayPath.ownerKey, discover.Watch
	if c.Gateways != nil {
		f.watch = f.followHook
	}
	f.dispatcher.log = c.Logger
	f.log = slog.New(queueHandler{&f.dispatcher, c.Logger.Handler()})
	f.clockTimer.Fire = f.compareClocks
	f.verifying = make(chan struct{}, maxVerifying)
	f.store = store{forwarder: f, path: c.StateFile, wake: make(chan struct{}, 1)}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	return f, nil
}

// beginCall starts a call. It starts the background work if this is the first call. The returned
// context ends when the Forwarder is closed. The caller must call the returned function when the
// call ends.
func (f *Forwarder) beginCall(ctx context.Context) (context.Context, func(), error) {
	ctx, end, err := f.calls.Begin(ctx)
	if err != nil {
		return nil, nil, errClosed("forwarder")
	}
	if !f.started.Swap(true) {
		f.startWork()
	}
	return ctx, end, nil
}

// begin is beginCall for calls that are bounded: without a deadline of its own, the context ends
// after Config.RequestTimeout.
func (f *Forwarder) begin(ctx context.Context) (context.Context, func(), error) {
	ctx, end, err := f.beginCall(ctx)
	if err != nil {
		return nil, nil, err
	}
	if _, has := ctx.Deadline(); has {
		return ctx, end, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.config.RequestTimeout, &gateway.TimeoutError{After: f.config.RequestTimeout})
	return ctx, func() { cancel(); end() }, nil
}

// startWork starts the goroutines that run until the Forwarder is closed.
func (f *Forwarder) startWork() {
	f.loop.Do(f.startClock)
	if len(f.config.Backends) == 0 {
		f.work.Go(f.followNetwork)
	}
	if f.config.StateFile != "" {
		f.work.Go(f.store.run)
	}
}

// family returns the address family to use if no option names one: the family of
// Config.Gateway, or IPv4.
func (f *Forwarder) family() family {
	if gw := f.config.Gateway.Addr(); gw.IsValid() {
		return familyOf(gw)
	}
	return ipv4
}

// familyFor returns the address family of the gateway for a spec.
func (f *Forwarder) familyFor(s *spec) family {
	switch {
	case s.ipv6:
		return ipv6
	case s.ipv4:
		return ipv4
	}
	return f.family()
}

// Gateway describes a gateway that replied, and the route to it.
type Gateway struct {
	// Addr is the address of the gateway. Its port is the one from Config.Gateway, or 0. Addr
	// is the zero value for ready-made backends.
	Addr netip.AddrPort
	// Interface is the interface toward the gateway, and Local is the address of this host
	// that receives the forwarded traffic. They are empty if Config names a gateway but not
	// these.
	Interface string
	Local     netip.Addr
	// Backends has the names of the backends that the gateway supports, the preferred one
	// first. It does not include backends that have not been probed because none of them was
	// needed.
	Backends []string
}

// Gateway finds the gateway as the first call that needs it does, and returns it. The result
// is cached. With the option IPv6(), Gateway returns the gateway for IPv6; other options have
// no effect.
func (f *Forwarder) Gateway(ctx context.Context, opts ...Option) (Gateway, error) {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return Gateway{}, err
	}
	defer end()
	s, err := f.newSpec(opts)
	if err != nil {
		return Gateway{}, err
	}
	r, done, err := f.selectGateway(ctx, f.familyFor(&s))
	if err != nil {
		return Gateway{}, err
	}
	defer done()
	g := Gateway{Addr: r.path.gateway, Interface: r.path.iface, Local: r.path.source}
	for _, b := range r.client.Available() {
		g.Backends = append(g.Backends, b.String())
	}
	return g, nil
}

// ExternalIP requests the external address from the gateway. If the gateway reports none,
// the error wraps backends.ErrNetworkFailure. PCP has no request for the address, so with
// PCP ExternalIP creates a mapping for a moment and deletes it again.
func (f *Forwarder) ExternalIP(ctx context.Context) (netip.Addr, error) {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	defer end()
	r, done, err := f.selectGateway(ctx, f.family())
	if err != nil {
		return netip.Addr{}, err
	}
	defer done()
	var failures []error
	for _, b := range r.client.ByAvailability() {
		addr, err := f.externalAddr(ctx, r.client, b)
		if err == nil {
			return addr, nil
		}
		if ctx.Err() != nil && !gateway.IsTimeout(ctx) {
			return netip.Addr{}, err
		}
		failures = append(failures, err)
	}
	return netip.Addr{}, newError(situation{attempts: failures, config: &f.config, gateway: r.path.gateway.Addr(), replied: true})
}

func (f *Forwarder) externalAddr(ctx context.Context, c *gateway.Client, b *gateway.Backend) (netip.Addr, error) {
	if err := c.EnsureProbed(ctx, b, f.config.DiscoveryTimeout); err != nil {
		return netip.Addr{}, err
	}
	addr, err := c.ExternalAddr(ctx, b, f.config.RequestTimeout)
	if err == nil && !addr.IsValid() {
		err = fmt.Errorf("%v: %w: the gateway reports no external address", b, backends.ErrNetworkFailure)
	}
	return addr, err
}

// LocalIP returns the address of this host on the route to the gateway. It sends no packets.
func (f *Forwarder) LocalIP(ctx context.Context) (netip.Addr, error) {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	defer end()
	if f.config.Source.IsValid() {
		return f.config.Source, f.config.checkSource()
	}
	f.callHook(ctx)
	p, err := f.findPath(f.family())
	switch {
	case err != nil:
		return netip.Addr{}, err
	case !p.local.IsValid():
		_, err := netbind.LocalAddr(p.gateway.Addr())
		return netip.Addr{}, fmt.Errorf("forward: %w: %w", ErrNoGateway, err)
	}
	return p.local, nil
}

// errClosed returns an error that wraps ErrClosed.
func errClosed(what string) error { return fmt.Errorf("forward: %s %w", what, ErrClosed) }
