package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/gateway"
)

// registry holds the gateways of the process: Forwarders share them.
var registry = gateway.NewRegistry(gateway.Jitter)

// Forwarder forwards ports and keeps them so. Its methods may be called by
// several goroutines at once. Make one with New, and end it with Close or
// Shutdown.
type Forwarder struct {
	config        Config
	log           *slog.Logger // by the dispatcher
	registry      *gateway.Registry
	jitter        func(time.Duration) time.Duration
	defaultRoutes [2]func() (discover.Gateway, error)       // the kernel's default routes, by family
	configs       func(gatewayPath) []gateway.BackendConfig // the backends to use at a gateway
	keyOf         func(gatewayPath) gateway.Key
	watch         func(context.Context, func()) error // of the network

	hook      atomic.Pointer[hookRoutes] // the last result of Config.Gateways; nil: none yet
	hookCalls atomic.Uint64

	ctx        context.Context //nolint:containedctx // the life of the background work; bounds no call of a caller
	cancel     context.CancelCauseFunc
	work       sync.WaitGroup // goroutines of ours
	dispatcher dispatcher
	store      store

	calls   ctxsync.Calls
	started atomic.Bool
	closing once

	// loop owns what is next.
	loop           gateway.Loop
	held           []*Mapping // in the order of enabling
	routes         []*route
	current        [2]*route // the ones to use, by family
	verifyLimit    gateway.TokenBucket
	wakeLimit      gateway.TokenBucket // of mappings that are not granted
	clockTimer     gateway.Timer
	clockCheckedAt time.Time // when the clocks were compared
}

// New checks the config, whose errors wrap backends.ErrInvalid, and does no
// I/O. A nil config is valid.
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
	f.store = store{forwarder: f, path: c.StateFile, wake: make(chan struct{}, 1)}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	return f, nil
}

// begin counts a call in, bounds its context by the Forwarder's life and
// Config.RequestTimeout, and starts the background work. The function that it returns
// counts the call out.
func (f *Forwarder) begin(ctx context.Context) (context.Context, func(), error) {
	ctx, end, err := f.calls.Begin(ctx)
	if err != nil {
		return nil, nil, errClosed("forwarder")
	}
	if !f.started.Swap(true) {
		f.startWork()
	}
	if _, has := ctx.Deadline(); has {
		return ctx, end, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.config.RequestTimeout, &gateway.TimeoutError{After: f.config.RequestTimeout})
	return ctx, func() { cancel(); end() }, nil
}

// startWork starts the goroutines that live as long as the Forwarder.
func (f *Forwarder) startWork() {
	f.loop.Do(f.startClock)
	if len(f.config.Backends) == 0 {
		f.work.Go(f.followNetwork)
	}
	if f.config.StateFile != "" {
		f.work.Go(f.store.run)
	}
}

// family returns the address family of the gateway if no option names one: that of
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

// Gateway is a gateway that answered, and the way to it.
type Gateway struct {
	// Addr is its address, with the port that was named, or 0. The zero value for
	// ready-made backends.
	Addr netip.AddrPort
	// Interface and Local are the way to it; Local is the address that gets the
	// mappings. They are empty where a gateway was named and they were not.
	Interface string
	Local     netip.Addr
	// Backends are the names of those that it answered, the preferred first. Those
	// that there was no need to ask are not among them.
	Backends []string
}

// Gateway finds the gateway, as the first call that needs it does, and returns what was
// found. It is remembered. With IPv6() it is the gateway for IPv6; other options change
// nothing.
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

// ExternalIP asks the gateway for its external address.
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
	return netip.Addr{}, newError(failures, true)
}

func (f *Forwarder) externalAddr(ctx context.Context, c *gateway.Client, b *gateway.Backend) (netip.Addr, error) {
	if err := c.EnsureProbed(ctx, b, f.config.DiscoveryTimeout); err != nil {
		return netip.Addr{}, err
	}
	addr, err := c.ExternalAddr(ctx, b, f.config.RequestTimeout)
	if err == nil && !addr.IsValid() {
		err = fmt.Errorf("%v: %w: the gateway does not know its external address", b, backends.ErrNetworkFailure)
	}
	return addr, err
}

// LocalIP returns the address of this host that the gateway sees. It sends nothing.
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
		_, err := localAddrFor(p.gateway.Addr())
		return netip.Addr{}, fmt.Errorf("forward: %w: %w", ErrNoGateway, err)
	}
	return p.local, nil
}

// OpenExternalPort returns an external port that the gateway would forward
// just now: somebody else may take it before you ask for it. NAT-PMP and PCP
// cannot be asked which ports are free, so it maps one for a moment and takes
// that away again.
func (f *Forwarder) OpenExternalPort(ctx context.Context, p backends.Protocol) (uint16, error) {
	m, err := f.Enable(ctx, Protocol(p, 0), External(RandomPort()), Lifetime(time.Minute), Once())
	if err != nil {
		return 0, err
	}
	return m.External().Port(), m.Shutdown(ctx)
}

// matching returns the held mappings that match all selectors, in the order of
// enabling.
func (f *Forwarder) matching(sel []Selector) []*Mapping {
	var held []*Mapping
	f.loop.Do(func() { held = slices.Clone(f.held) })
	return slices.DeleteFunc(held, func(m *Mapping) bool { return !selectsAll(sel, m.subject()) })
}

// errClosed is ErrClosed of something.
func errClosed(what string) error { return fmt.Errorf("forward: %s %w", what, ErrClosed) }
