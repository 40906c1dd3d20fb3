package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
)

// Backend is a backend of an owner, and what is known of it.
type Backend struct {
	backends.Backend
	config   BackendConfig
	name     string
	probe    func(context.Context) error // nil: it needs none
	searches bool                        // its device is searched for, by a socket of its own

	// Owned by the owner's loop.
	probeErr    error     // of the last probe: nil if it answered, errPending if there is none
	probedAt    time.Time // when that failed
	watched     bool
	verifyLimit TokenBucket // of recoveries
	lost        time.Time   // when its gateway last lost its state, if it told
}

// BackendConfig says how to make a backend. Clients with equal configs share it.
type BackendConfig struct {
	Protocol  string           // the name of one of Protocols, or Direct
	Ready     backends.Backend // a ready-made one, with the rest zero
	Interface string
	Announce  netip.AddrPort // where announcements are received
	Nonce     string         // the secret that PCP nonces are derived from
	URL       string         // of a UPnP root description
	Only      bool           // no other UPnP device than the gateway
	SSDP      netip.AddrPort // where UPnP devices are searched
	Notify    netip.AddrPort // where UPnP notifications are received
	Wait      time.Duration  // of a search

	probe  *func(context.Context) error // for tests
	search bool
}

// Direct is the protocol of a host with a public address of its own.
const Direct = "direct"

// open makes the backend for an owner's gateway, without I/O.
func (c BackendConfig) open(o *Owner) (*Backend, error) {
	b := &Backend{config: c, name: c.Protocol, probeErr: errNotProbed}
	p, is := Find(c.Protocol)
	switch {
	case is:
		prober, err := p.Open(c, o.key, o.log())
		if err != nil {
			return nil, fmt.Errorf("forward: %w", err)
		}
		b.Backend, b.probe, b.searches = prober, prober.Probe, p.Searches
	case c.Protocol == Direct:
		b.Backend = direct{o.key.Local}
	default:
		b.Backend, b.name, b.searches = c.Ready, c.Ready.String(), c.search
		if c.probe != nil {
			b.probe = *c.probe
		} else {
			b.probeErr = nil
		}
	}
	return b, nil
}

// ask returns nil if the gateway speaks the backend's protocol, even if it refuses:
// what it refuses, the mapping itself will tell better.
func (b *Backend) runProbe(ctx context.Context) error {
	if b.probe == nil {
		return nil
	}
	err := b.probe(ctx)
	for _, reply := range []error{backends.ErrNotAuthorized, backends.ErrNetworkFailure, backends.ErrNoResources, backends.ErrPrivateWAN} {
		if errors.Is(err, reply) {
			return nil
		}
	}
	return err
}

// notFound is of a kind that says whether the gateway answers otherwise.
func (b *Backend) notFound(kind error) error {
	return fmt.Errorf("%s: %w: no device answered the search", b.name, kind)
}

// Backends returns the client's backends, the preferred first.
func (c *Client) Backends() []*Backend { return c.backends }

// Available returns the client's backends that answered, the preferred first.
func (c *Client) Available() (out []*Backend) {
	c.owner.loop.Do(func() { out = c.available() })
	return out
}

func (c *Client) available() []*Backend {
	return slices.DeleteFunc(slices.Clone(c.backends), func(b *Backend) bool { return b.probeErr != nil })
}

// candidates returns the backends in the order in which to try them for a spec: one that
// holds the endpoint for this program already, those that answered, the others.
func (c *Client) backendsFor(g *group, s *Spec) []*Backend {
	rank := func(b *Backend) int {
		switch e := g.entry(b.name, Member{Protocol: s.Protocols[0]}); {
		case e != nil && e.isHeld():
			return 0
		case b.probeErr == nil:
			return 1
		}
		return 2
	}
	out := slices.Clone(c.backends)
	slices.SortStableFunc(out, func(a, b *Backend) int { return rank(a) - rank(b) })
	return out
}

// InOrder returns the client's backends, those that answered first.
func (c *Client) ByAvailability() []*Backend {
	out := c.Available()
	for _, b := range c.backends {
		if !slices.Contains(out, b) {
			out = append(out, b)
		}
	}
	return out
}

// direct is the backend of a host with a public address of its own: no NAT
// stands before it, so there is nothing to map, and external is internal.
type direct struct {
	addr netip.Addr
}

var _ backends.Backend = direct{}

func (direct) String() string { return "direct" }
func (direct) Close() error   { return nil }

func (d direct) Supports(r backends.Request) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("direct: %w", err)
	}
	reason := ""
	switch internal := r.Internal.Addr().Unmap(); {
	case internal.IsValid() && !internal.IsUnspecified() && internal != d.addr:
		reason = "no NAT stands before this host that could forward to another"
	case r.Remote.IsValid():
		reason = "no NAT stands before this host that could admit one peer only"
	case r.Exact && r.External.Port() != r.Internal.Port():
		reason = "no NAT stands before this host that could change a port"
	default:
		return nil
	}
	return fmt.Errorf("direct: %w: %s", backends.ErrUnsupported, reason)
}

func (d direct) ExternalAddr(context.Context) (netip.Addr, error) { return d.addr, nil }

func (d direct) Map(ctx context.Context, r backends.Request) (backends.Mapping, error) {
	if err := d.Supports(r); err != nil {
		return backends.Mapping{}, err
	}
	endpoint := netip.AddrPortFrom(d.addr, r.Internal.Port())
	return backends.Mapping{
		Backend: d.String(), Protocol: r.Protocol, Internal: endpoint, External: endpoint,
		Description: r.Description, Lifetime: backends.Forever, Granted: time.Now(),
	}, context.Cause(ctx)
}

func (d direct) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	r.Protocol, r.Internal = m.Protocol, m.Internal
	return d.Map(ctx, r)
}

func (direct) Unmap(_ context.Context, m backends.Mapping) error { return m.Check() }

// Protocol is a protocol that gateways are asked by. Another protocol joins Protocols, and
// nothing else.
type Protocol struct {
	Name     string
	Title    string                            // for people
	IPv6     bool                              // gateways of that family may speak it
	Keyed    bool                              // its mappings have a secret, which can be derived from a key
	Searches bool                              // its devices are searched for, by a socket of its own
	uses     func(BackendConfig) BackendConfig // the part that it uses
	open     func(BackendConfig, Key, *slog.Logger) (Prober, error)
}

// Prober is a backend that tells whether its gateway speaks the protocol.
type Prober interface {
	backends.Backend
	Probe(ctx context.Context) error
}

// Protocols are the protocols that there are, the preferred first.
var Protocols = []Protocol{
	{Name: natpmp.Name, Title: "NAT-PMP", open: openNATPMP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, Announce: c.Announce}
	}},
	{Name: pcp.Name, Title: "PCP", IPv6: true, Keyed: true, open: openPCP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, Announce: c.Announce, Nonce: c.Nonce}
	}},
	{Name: upnp.Name, Title: "UPnP", IPv6: true, Searches: true, open: openUPnP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, URL: c.URL, Only: c.Only, SSDP: c.SSDP, Notify: c.Notify, Wait: c.Wait}
	}},
}

// Names returns the names of Protocols.
func Names() (names []string) {
	for _, p := range Protocols {
		names = append(names, p.Name)
	}
	return names
}

// Find returns the protocol with a name, or false.
func Find(name string) (Protocol, bool) {
	for _, p := range Protocols {
		if p.Name == name {
			return p, true
		}
	}
	return Protocol{}, false
}

// Config returns the part of a config that the protocol uses, so that what differs otherwise
// does not keep clients from sharing a backend.
func (p Protocol) Config(c BackendConfig) BackendConfig {
	c = p.uses(c)
	c.Protocol = p.Name
	return c
}

// Open makes the backend of the protocol for a gateway, without I/O.
func (p Protocol) Open(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	return p.open(c, at, log)
}

// How a request is repeated: some leases last a minute, and a link that loses packets
// loses several in a row. The longest wait is for how long a transmission holds the
// gateway's queue; all of them together take fourteen seconds, in which a slow gateway
// answers.
const (
	longestWait   = time.Second
	transmissions = 15
)

func openNATPMP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	b, err := natpmp.New(natpmp.Config{
		Gateway: at.Gateway, Interface: c.Interface, Source: at.Local, Transmissions: transmissions, LongestWait: longestWait,
		Announce: c.Announce, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

func openPCP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	config := pcp.Config{
		Gateway: at.Gateway, Interface: c.Interface, Source: at.Local,
		// The standard's pace is for requests that nobody waits for.
		FirstWait: natpmp.DefaultFirstWait, Transmissions: transmissions, LongestWait: longestWait,
		Announce: c.Announce, Logger: log,
	}
	if c.Nonce != "" {
		config.Nonce = func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
			return pcp.DeriveNonce([]byte(c.Nonce), gateway, p, internal)
		}
	}
	b, err := pcp.New(config)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func openUPnP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	config := upnp.Config{
		Gateway: at.Gateway.Addr(), Interface: c.Interface, Source: at.Local, Only: c.Only, URL: c.URL,
		Notify: c.Notify, Wait: c.Wait, Logger: log,
	}
	if c.SSDP.IsValid() {
		config.SSDP = []netip.AddrPort{c.SSDP}
	}
	b, err := upnp.New(config)
	if err != nil {
		return nil, err
	}
	return b, nil
}
