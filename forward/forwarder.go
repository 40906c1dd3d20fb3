package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
)

// Forwarder forwards ports and keeps them so. Its methods may be called by
// several goroutines at once. Make one with New, and end it with Close or
// Shutdown.
type Forwarder struct {
	config    Config
	log       *slog.Logger
	readyMade *way                                // of Config.Backends, or nil
	routes    [2]func() (discover.Gateway, error) // the kernel's ways to the internet, by family

	ctx       context.Context //nolint:containedctx // the life of the background work; bounds no call of a caller
	cancel    context.CancelCauseFunc
	calls     sync.WaitGroup // callers inside
	closings  gate           // of mappings
	work      sync.WaitGroup // goroutines of ours
	start     sync.Once      // of those
	choosing  [2]turn        // one looks for a gateway of a family at a time
	scheduler scheduler
	jitter    func(time.Duration) time.Duration // spreads what it does
	events    events
	ledger    ledger
	debts     debts
	ended     chan struct{} // closed when Shutdown is done

	mu      sync.Mutex
	closed  bool
	held    []*Mapping            // in the order of enabling
	byPort  map[uint16][]*Mapping // the same, by the internal port asked for
	ways    map[wayKey]*way
	current [2]*way // the ones last used, by family
	retired []*way  // not used for new mappings any more
	looks   pacer   // of what a change of the network leads to
	strays  chan struct{}
}

// New checks the config, whose errors wrap backends.ErrInvalid, and does no
// I/O. A nil config is valid.
func New(config *Config) (*Forwarder, error) {
	c, err := config.check()
	if err != nil {
		return nil, err
	}
	f := &Forwarder{
		config:    c,
		log:       c.Logger,
		routes:    [2]func() (discover.Gateway, error){discover.Default, discover.Default6},
		scheduler: scheduler{wake: make(chan struct{}, 1)},
		jitter:    jitter,
		events:    events{wake: make(chan struct{}, 1)},
		ended:     make(chan struct{}),
		strays:    make(chan struct{}, 1),
		byPort:    map[uint16][]*Mapping{},
		ways:      map[wayKey]*way{},
	}
	f.debts.forwarder = f
	f.ledger = ledger{forwarder: f, path: c.StateFile, wake: make(chan struct{}, 1)}
	if len(c.Backends) > 0 {
		f.readyMade = &way{}
		for _, b := range c.Backends {
			f.readyMade.candidates = append(f.readyMade.candidates, &candidate{backend: b, verdict: speaks})
		}
	}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	return f, nil
}

// timeoutError is the cause of an end by one of our own bounds.
type timeoutError struct {
	after time.Duration
}

func (e *timeoutError) Error() string {
	return fmt.Sprintf("%v within %v", backends.ErrNoReply, e.after)
}
func (e *timeoutError) Unwrap() error { return backends.ErrNoReply }

// isOwnTimeout reports whether one of our own bounds ended the context.
func isOwnTimeout(ctx context.Context) bool {
	var own *timeoutError
	return errors.As(context.Cause(ctx), &own)
}

// bound bounds a context without a deadline by Config.Timeout.
func (f *Forwarder) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, f.config.Timeout, &timeoutError{f.config.Timeout})
}

// begin counts a call in, bounds its context by the Forwarder's life and
// Config.Timeout, and starts the background work. The function that it returns
// counts the call out.
func (f *Forwarder) begin(ctx context.Context) (context.Context, func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nil, fmt.Errorf("forward: %w", ErrClosed)
	}
	f.calls.Add(1)
	f.start.Do(f.startWork)
	ctx, cancelTimeout := f.bound(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(f.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		cancelTimeout()
		f.calls.Done()
	}, nil
}

// startWork starts the goroutines that live as long as the Forwarder.
func (f *Forwarder) startWork() {
	f.work.Go(func() { f.scheduler.run(f.ctx) })
	f.work.Go(func() { f.followNetwork(f.ctx) })
	if f.config.StateFile != "" {
		f.work.Go(func() { f.ledger.run(f.ctx) })
	}
	if f.config.OnEvent != nil {
		f.work.Go(f.dispatch)
	}
}

// watch follows what a backend notices of its gateway, from its first mapping
// on.
func (f *Forwarder) watch(c *candidate) {
	w, ok := c.backend.(backends.Watcher)
	if !ok {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.watched || f.closed {
		return
	}
	c.watched = true
	f.work.Go(func() {
		err := w.Watch(f.ctx, func(change backends.Change) { f.onChange(c, change) })
		if f.ctx.Err() == nil {
			f.log.Warn("the gateway is no longer watched", "backend", c.backend.String(), "err", err)
		}
	})
}

// onChange asks for all mappings of a backend again: RFC 6886 section 3.7 would
// wait up to five seconds, to spare a gateway with many hosts; the queue of one
// request at a time spares it too, and programs are back sooner.
func (f *Forwarder) onChange(c *candidate, change backends.Change) {
	f.log.Info("the gateway changed", "backend", c.backend.String(), "change", change.Kind.String(),
		"external", change.External, "reason", change.Reason)
	f.mu.Lock()
	at := c.pace.next(time.Now())
	if change.Kind == backends.Restarted {
		c.lost = change.Since
	}
	held := slices.Clone(f.held)
	f.mu.Unlock()
	held = slices.DeleteFunc(held, func(m *Mapping) bool { return !m.uses(c) })
	if change.Kind == backends.Restarted {
		held = slices.DeleteFunc(held, func(m *Mapping) bool { return !m.bereave(change.Since) })
	}
	f.suspect(held, func(*Mapping) backends.Change { return change }, at)
}

// uses reports whether the candidate granted the mapping, or nobody has: it may
// be what a mapping waits for that expired, or was never granted.
func (m *Mapping) uses(c *candidate) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.legs) == 0 || slices.ContainsFunc(m.legs, func(l leg) bool { return l.candidate == c })
}

// hold makes the Forwarder answer for a mapping.
func (f *Forwarder) hold(m *Mapping) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = append(f.held, m)
	f.byPort[m.port] = append(f.byPort[m.port], m)
	f.ledger.changed()
}

// release is hold's inverse.
func (f *Forwarder) release(m *Mapping) {
	f.scheduler.unset(m)
	defer f.ledger.changed()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = without(f.held, m)
	if f.byPort[m.port] = without(f.byPort[m.port], m); len(f.byPort[m.port]) == 0 {
		delete(f.byPort, m.port)
	}
}

func without(ms []*Mapping, m *Mapping) []*Mapping {
	if i := slices.Index(ms, m); i >= 0 {
		return slices.Delete(ms, i, i+1)
	}
	return ms
}

// family is that of the gateway where nothing else is said: IPv4, unless one
// was named.
func (f *Forwarder) family() family {
	if gw := f.config.Gateway.Addr(); gw.IsValid() {
		return familyOf(gw)
	}
	return ipv4
}

// familyFor is that of the gateway that a wish takes.
func (f *Forwarder) familyFor(w *wish) family {
	switch {
	case w.ipv6:
		return ipv6
	case w.ipv4:
		return ipv4
	}
	return f.family()
}

// Probe finds the gateway and asks what it speaks, as the first call that needs
// it would. A gateway that answered is remembered.
func (f *Forwarder) Probe(ctx context.Context) error {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = f.choose(ctx, f.family())
	return err
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

// Gateway finds the gateway, as Probe does, and says what was found. With
// IPv6() it is the gateway for IPv6; other options do not matter.
func (f *Forwarder) Gateway(ctx context.Context, opts ...Option) (Gateway, error) {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return Gateway{}, err
	}
	defer end()
	w, err := f.newWish(opts)
	if err != nil {
		return Gateway{}, err
	}
	way, err := f.choose(ctx, f.familyFor(&w))
	if err != nil {
		return Gateway{}, err
	}
	g := Gateway{Addr: way.key.gateway, Interface: way.key.iface, Local: way.key.source}
	for _, c := range f.speaking(way) {
		g.Backends = append(g.Backends, c.backend.String())
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
	way, err := f.choose(ctx, f.family())
	if err != nil {
		return netip.Addr{}, err
	}
	var failures []error
	for _, c := range f.inOrder(way) {
		addr, err := f.externalAddr(ctx, way, c)
		if err == nil {
			return addr, nil
		}
		if ctx.Err() != nil && !isOwnTimeout(ctx) {
			return netip.Addr{}, err
		}
		failures = append(failures, err)
	}
	return netip.Addr{}, newError(failures, true)
}

func (f *Forwarder) externalAddr(ctx context.Context, w *way, c *candidate) (netip.Addr, error) {
	if err := f.ready(ctx, w, c); err != nil {
		return netip.Addr{}, err
	}
	addr, err := c.backend.ExternalAddr(ctx)
	if err == nil && !addr.IsValid() {
		err = fmt.Errorf("%v: %w: the gateway does not know its external address", c.backend, backends.ErrNetworkFailure)
	}
	return addr, err
}

// LocalIP returns the address of this host that the gateway sees. It sends
// nothing.
func (f *Forwarder) LocalIP(ctx context.Context) (netip.Addr, error) {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	defer end()
	if f.config.Source.IsValid() {
		if err := f.config.checkSource(); err != nil {
			return netip.Addr{}, err
		}
		return f.config.Source, nil
	}
	k, err := f.locate(f.family())
	if err != nil {
		return netip.Addr{}, err
	}
	if k.source.IsValid() {
		return k.source, nil
	}
	local, err := localToward(ctx, k.gateway.Addr())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("forward: %w: %w", ErrNoGateway, err)
	}
	return local, nil
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
	port := m.External().Port()
	ctx, cancel := f.bound(ctx)
	defer cancel()
	return port, m.close(ctx)
}
