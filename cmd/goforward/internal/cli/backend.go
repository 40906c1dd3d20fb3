package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/gateway"
)

// target is a gateway, with the addresses and settings that its backends need.
type target struct {
	gateway  netip.AddrPort // port 0: the default port of the protocol
	iface    string
	source   netip.Addr
	nonceKey []byte         // PCP nonces are derived from it; nil: none
	igdURL   string         // URL of its UPnP description; empty: search for it
	only     bool           // use no UPnP device except the gateway's
	search   time.Duration  // bounds the search; 0: the same as in map
	ssdp     netip.AddrPort // address of the search; the zero value: the standard address

	// Addresses to listen on for announcements and notifications. The zero values mean the
	// standard addresses.
	announce, notify netip.AddrPort
}

// protocol opens backends of one protocol. The commands need backends for requests that a
// Forwarder does not offer, because it handles only the mappings of its own process.
type protocol struct {
	name    string
	title   string // name in messages and tables
	open    func(*app, target) (probedBackend, error)
	ipv6    bool // the protocol supports IPv6 gateways too
	usesKey bool // its mappings have a secret that is derived from the user's key
}

// probedBackend is a backend with a request that tests whether the gateway supports its
// protocol. probe also returns the external address if the response has it.
type probedBackend struct {
	backends.Backend
	probe func(context.Context) (netip.Addr, error)
	// devices returns all devices of the protocol, the preferred one first. It is nil if the
	// gateway is the only device.
	devices func(context.Context) ([]upnp.Gateway, error)
}

// protocols are all protocols of the forward package.
var protocols = func() (out []protocol) {
	for _, p := range gateway.Protocols {
		out = append(out, protocol{name: p.Name, title: p.Title, ipv6: p.IPv6, usesKey: p.Keyed, open: func(a *app, t target) (probedBackend, error) {
			return openBackend(p, a, t)
		}})
	}
	return out
}()

// searchTimeout bounds a search for UPnP devices if the gateway supports another protocol and
// --timeout is not set. Most devices respond within a second.
const searchTimeout = 1500 * time.Millisecond

func openBackend(p gateway.Protocol, a *app, t target) (probedBackend, error) {
	config := gateway.BackendConfig{
		Interface: t.iface, Announce: t.announce, Nonce: string(t.nonceKey), Only: t.only, URL: t.igdURL, SSDP: t.ssdp, Notify: t.notify,
		Wait: cmp.Or(t.search, cmp.Or(a.settings.timeout, forward.DefaultDiscoveryTimeout)*7/8), // other requests follow the search
	}
	if t.gateway.Addr().Is6() {
		if g, err := discover.Default(); err == nil && g.Interface == t.iface {
			config.Gateway4 = g.Addr // as in the Forwarder
		}
	}
	b, err := p.Open(config, gateway.Key{Gateway: t.gateway, Local: t.source}, a.logger())
	if err != nil {
		return probedBackend{}, err
	}
	probed := probedBackend{Backend: b, probe: probeWithoutAddr(b.Probe)}
	switch b := b.(type) {
	case *natpmp.Backend:
		probed.probe = b.ExternalAddr // Probe sends the same request; PCP has no request for the address
	case *upnp.Backend:
		probed.devices = b.Gateways
	}
	return probed, nil
}

// probeWithoutAddr makes a probe of a request whose response has no external address.
func probeWithoutAddr(request func(context.Context) error) func(context.Context) (netip.Addr, error) {
	return func(ctx context.Context) (netip.Addr, error) { return netip.Addr{}, request(ctx) }
}

func protocolNames(ps []protocol) []string {
	var names []string
	for _, p := range ps {
		names = append(names, p.name)
	}
	return names
}

// selectedProtocols returns the protocols that --backend selects, in its order.
func (a *app) selectedProtocols() []protocol {
	if a.settings.backends == nil {
		return a.protocols
	}
	var out []protocol
	for _, name := range a.settings.backends {
		if i := slices.IndexFunc(a.protocols, func(p protocol) bool { return p.name == name }); i >= 0 {
			out = append(out, a.protocols[i])
		}
	}
	return out
}

// availableBackend is a backend whose protocol the gateway supports.
type availableBackend struct {
	protocol
	backends.Backend
	gateway   netip.AddrPort
	localAddr netip.Addr // the address under which the gateway sees this host
}

// probeResult is the result of probing the gateway.
type probeResult struct {
	gateway     netip.AddrPort
	available   []availableBackend // the preferred one first
	unavailable []unavailableBackend
}

// localAddr returns the address under which the gateway sees this host.
func (r *probeResult) localAddr() netip.Addr { return r.available[0].localAddr }

// unavailableBackend is a backend that got no reply, or an unusable reply.
type unavailableBackend struct {
	availableBackend
	err error
}

// err returns the reasons why no backend is available.
func (r *probeResult) err() error {
	var errs []error
	for _, b := range r.unavailable {
		errs = append(errs, b.err)
	}
	return errors.Join(errs...)
}

// probeTimeout bounds the probe of a backend that the Forwarder did not need to probe.
const probeTimeout = 500 * time.Millisecond

// query has the options for finding backends, and what to do with them.
type query struct {
	options    []forward.Option            // options that select the gateway
	key        []byte                      // PCP nonces are derived from it; nil: none
	timeout    time.Duration               // bounds all requests, unless --timeout is set
	sufficient func(backends.Backend) bool // an available backend for which it returns true is enough; nil: wait for all
	do         func(context.Context, *probeResult) error
	all        bool // probe also the backends that are known to be available
}

// withBackends finds the gateway like a Forwarder, and calls q.do with its available backends.
func (a *app) withBackends(ctx context.Context, q query) error {
	if err := a.settings.checkSource(); err != nil {
		return err
	}
	f, err := forward.New(a.config())
	if err != nil {
		return err
	}
	defer a.close(f)
	g, err := f.Gateway(ctx, q.options...)
	if err != nil {
		return err
	}
	ctx, cancel := withTimeout(ctx, cmp.Or(a.settings.timeout, q.timeout))
	defer cancel()
	local := g.Local
	if !local.IsValid() {
		if local, err = f.LocalIP(ctx); err != nil {
			return err
		}
	}
	t := target{
		gateway: g.Addr, iface: g.Interface, source: g.Local, nonceKey: q.key, igdURL: a.settings.igd,
		only: g.Addr == a.settings.namedGateway(), ssdp: a.settings.ssdp, announce: a.settings.announce, notify: a.settings.notify,
	}
	if len(g.Backends) > 0 && !slices.Contains(g.Backends, upnp.Name) && q.sufficient == nil { // the device may not exist
		t.search = cmp.Or(a.settings.timeout/2, searchTimeout)
	}
	var all []availableBackend
	var probed []probedBackend
	for _, p := range a.selectedProtocols() {
		if t.gateway.Addr().Is6() && !p.ipv6 {
			continue
		}
		b, err := p.open(a, t)
		if err != nil {
			return err
		}
		defer func() { _ = b.Close() }()
		all, probed = append(all, availableBackend{p, b.Backend, t.gateway, local}), append(probed, b)
	}
	result := &probeResult{gateway: t.gateway}
	known := g.Backends
	if q.all {
		known = nil
	}
	errs := probeAll(ctx, probed, known, q.sufficient)
	replied := len(slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err != nil }))
	for i, err := range errs {
		if b, is := all[i].Backend.(*upnp.Backend); is && err == nil && replied > 1 && b.OtherDevice().IsValid() {
			err = fmt.Errorf("upnp: %w: the device at %v is not this gateway's, which supports another protocol", backends.ErrUnsupported, b.OtherDevice())
		}
		if err == nil {
			result.available = append(result.available, all[i])
		} else {
			result.unavailable = append(result.unavailable, unavailableBackend{all[i], err})
		}
	}
	if len(result.available) == 0 { // although the gateway replied to the Forwarder a moment ago
		return result.err()
	}
	if err := q.do(ctx, result); err != nil {
		return sentError{err}
	}
	return nil
}

// probeAll probes, at the same time, all backends that are not known to be available and all
// backends that search for devices. The Forwarder did not probe all of them, but any of them
// may have created a mapping. If a backend is sufficient, probeAll does not wait for the
// others.
func probeAll(ctx context.Context, probed []probedBackend, known []string, sufficient func(backends.Backend) bool) []error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(probed))
	var wg sync.WaitGroup
	for i, b := range probed {
		if b.devices == nil && slices.Contains(known, b.String()) {
			continue
		}
		wg.Go(func() {
			if errs[i] = b.check(ctx); errs[i] == nil && sufficient != nil && sufficient(b.Backend) {
				cancel()
			}
		})
	}
	wg.Wait()
	return errs
}

// check returns nil if the gateway supports the protocol. A search has its own timeout.
func (b probedBackend) check(ctx context.Context) error {
	if b.devices == nil {
		var cancel context.CancelFunc
		ctx, cancel = withTimeout(ctx, probeTimeout)
		defer cancel()
	}
	_, err := b.probe(ctx)
	if probeStatus(err) == "yes" || errors.Is(err, backends.ErrNotAuthorized) {
		return nil
	}
	return err
}

// withTimeout bounds a context by a timeout. When the timeout expires, the cause is that the
// gateway did not reply; the caller did not cancel.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w within %v", backends.ErrNoReply, d))
}

// isLister reports whether a backend can list the table of the gateway.
func isLister(b backends.Backend) bool {
	_, ok := b.(backends.Lister)
	return ok
}

// forwardsHere reports whether a mapping forwards to this host, regardless of which program created
// it.
func (b availableBackend) forwardsHere(m backends.Mapping) bool {
	return m.Internal.Addr().IsValid() && m.Internal.Addr() == b.localAddr
}
