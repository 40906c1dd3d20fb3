package cli

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/gateway"
)

// way is a gateway and how to ask it.
type target struct {
	gateway netip.AddrPort // port 0: the protocol's own
	iface   string
	source  netip.Addr
	nonceKey     []byte         // that PCP nonces are derived from; nil: none
	igdURL     string         // the description of its UPnP device; empty: it is searched for
	ssdp    netip.AddrPort // where that is done; the zero value: where the standard says

	// Where to listen for what is announced; the zero values: where the standards say.
	announce, notify netip.AddrPort
}

// opener makes the backend of one protocol for a gateway, without I/O: for what
// the facade has no call for, because it only knows the mappings of its process.
type protocol struct {
	name  string
	title string // for people
	open  func(*app, target) (probedBackend, error)
	ipv6  bool // it is for gateways of that family too
	usesKey bool // mappings have a secret, which is derived from the user's key
}

// speaker is a backend, and the question that tells whether it is spoken, with
// the external address where the answer has that.
type probedBackend struct {
	backends.Backend
	probe func(context.Context) (netip.Addr, error)
	// devices finds all that speak it, the preferred first. Nil: the gateway is
	// the only one.
	devices func(context.Context) ([]upnp.Gateway, error)
}

// openers are those of all protocols of the facade.
var protocols = func() (out []protocol) {
	for _, p := range gateway.Protocols {
		out = append(out, protocol{name: p.Name, title: p.Title, ipv6: p.IPv6, usesKey: p.Keyed, open: func(a *app, w target) (probedBackend, error) {
			return openBackend(p, a, w)
		}})
	}
	return out
}()

// searchTime bounds the search for UPnP devices, which may take a second to
// answer.
const searchTimeout = 1500 * time.Millisecond

func openBackend(p gateway.Protocol, a *app, w target) (probedBackend, error) {
	config := gateway.BackendConfig{
		Interface: w.iface, Announce: w.announce, Nonce: string(w.nonceKey), SSDP: w.ssdp, Notify: w.notify, Wait: searchTimeout,
	}
	if t := a.settings.timeout; t != 0 {
		config.Wait = min(searchTimeout, t/2) // there is more to do
	}
	if host, err := igdHost(w.igdURL); err == nil && host.Is4() == w.gateway.Addr().Is4() {
		config.URL = w.igdURL
	}
	b, err := p.Open(config, gateway.Key{Gateway: w.gateway, Local: w.source}, a.logger())
	if err != nil {
		return probedBackend{}, err
	}
	s := probedBackend{Backend: b, probe: probeWithoutAddr(b.Probe)}
	switch b := b.(type) {
	case *natpmp.Backend:
		s.probe = b.ExternalAddr // is what Probe asks, too; the others tell it only with a mapping
	case *upnp.Backend:
		s.devices = b.Gateways
	}
	return s, nil
}

// probe is a question whose answer does not have the external address.
func probeWithoutAddr(ask func(context.Context) error) func(context.Context) (netip.Addr, error) {
	return func(ctx context.Context) (netip.Addr, error) { return netip.Addr{}, ask(ctx) }
}

func protocolNames(openers []protocol) []string {
	var names []string
	for _, o := range openers {
		names = append(names, o.name)
	}
	return names
}

// wanted are the openers that --backend leaves, in its order.
func (a *app) selectedProtocols() []protocol {
	if a.settings.backends == nil {
		return a.protocols
	}
	var out []protocol
	for _, name := range a.settings.backends {
		if i := slices.IndexFunc(a.protocols, func(o protocol) bool { return o.name == name }); i >= 0 {
			out = append(out, a.protocols[i])
		}
	}
	return out
}

// found is a backend that the gateway answered.
type availableBackend struct {
	protocol
	backends.Backend
	gateway netip.AddrPort
	localAddr   netip.Addr // what the gateway sees this host as
}

// survey is what came of asking the gateway.
type probeResult struct {
	gateway netip.AddrPort
	available   []availableBackend // the preferred first
	unavailable  []unavailableBackend
}

// silent is a backend that the gateway did not answer, or not well.
type unavailableBackend struct {
	availableBackend
	err error
}

// silence is why there is no backend.
func (s *probeResult) err() error {
	var errs []error
	for _, b := range s.unavailable {
		errs = append(errs, b.err)
	}
	return errors.Join(errs...)
}

// lateTime bounds the question to a backend that the facade had no need to ask.
const probeTimeout = 500 * time.Millisecond

// inquiry is how to look for backends, and what for.
type query struct {
	options    []forward.Option            // to the gateway
	key    []byte                      // that PCP nonces are derived from; nil: none
	timeout   time.Duration               // bounds all of it, unless --timeout does
	sufficient func(backends.Backend) bool // one that answers and is this will do; nil: none
	do     func(context.Context, *probeResult) error
}

// withBackends finds the gateway as the facade does, and does something with the
// backends that it answers.
func (a *app) withBackends(ctx context.Context, q query) error {
	if err := a.settings.checkSource(); err != nil {
		return err
	}
	f, err := forward.New(a.config())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
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
	w := target{
		gateway: g.Addr, iface: g.Interface, source: g.Local, nonceKey: q.key, igdURL: a.settings.igd,
		ssdp: a.settings.ssdp, announce: a.settings.announce, notify: a.settings.notify,
	}
	var all []availableBackend
	var speakers []probedBackend
	for _, o := range a.selectedProtocols() {
		if w.gateway.Addr().Is6() && !o.ipv6 {
			continue
		}
		s, err := o.open(a, w)
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		all, speakers = append(all, availableBackend{o, s.Backend, w.gateway, local}), append(speakers, s)
	}
	s := &probeResult{gateway: w.gateway}
	for i, err := range probeAll(ctx, speakers, g.Backends, q.sufficient) {
		if err == nil {
			s.available = append(s.available, all[i])
		} else {
			s.unavailable = append(s.unavailable, unavailableBackend{all[i], err})
		}
	}
	if len(s.available) == 0 { // it answered the facade a moment ago
		return s.err()
	}
	return q.do(ctx, s)
}

// askAll asks the backends at once that are not known to be answered. The gateway
// was not asked about all: any of them may be what made a mapping. Where one will
// do, the others are not waited for.
func probeAll(ctx context.Context, speakers []probedBackend, known []string, enough func(backends.Backend) bool) []error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(speakers))
	var wg sync.WaitGroup
	for i, s := range speakers {
		if s.devices == nil && slices.Contains(known, s.String()) {
			continue
		}
		wg.Go(func() {
			if errs[i] = s.check(ctx); errs[i] == nil && enough != nil && enough(s.Backend) {
				cancel()
			}
		})
	}
	wg.Wait()
	return errs
}

// answers returns nil where the gateway speaks the protocol. A search has its own
// bound.
func (s probedBackend) check(ctx context.Context) error {
	if s.devices == nil {
		var cancel context.CancelFunc
		ctx, cancel = withTimeout(ctx, probeTimeout)
		defer cancel()
	}
	_, err := s.probe(ctx)
	if probeStatus(err) == "yes" || errors.Is(err, backends.ErrNotAuthorized) {
		return nil
	}
	return err
}
