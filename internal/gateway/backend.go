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
	"github.com/natforward/goforward/internal/holders"
)

// Backend is a backend of an owner and the result of its last probe.
type Backend struct {
	backends.Backend
	config   BackendConfig
	name     string
	probe    func(context.Context) error // nil: the backend needs no probe
	searches bool                        // it finds devices by a search on its own socket
	programs *holders.Registry           // counts the programs that hold its mappings; nil: none, as for a ready-made backend

	// Only code on the owner's loop uses these fields.
	probeErr    error     // of the last probe: nil if the gateway replied, errNotProbed if there was none
	probedAt    time.Time // time of the last probe
	repliedLate bool      // the gateway replied to that probe after another backend was chosen
	watched     bool
	verifyLimit TokenBucket // of verification after changes
	lost        time.Time   // when its gateway last lost its state, if it reported that
	silentSince time.Time   // since when checks got no reply; zero: the last one got a reply
	others      listing     // whether its table lists the entries of other backends
}

// BackendConfig describes how to create a backend. Clients with equal configs share it.
type BackendConfig struct {
	Protocol  string           // the name of one of Protocols, or Direct
	Ready     backends.Backend // a ready-made backend; all other fields are then zero
	Interface string
	Announce  netip.AddrPort // the address on which announcements are received
	Nonce     string         // the secret from which PCP nonces are derived
	URL       string         // of a UPnP root description
	Only      bool           // use no UPnP device except the gateway
	Gateway4  netip.Addr     // the IPv4 address of an IPv6 gateway, if it is known
	SSDP      netip.AddrPort // the address to which UPnP searches are sent
	Notify    netip.AddrPort // the address on which UPnP notifications are received
	Wait      time.Duration  // of a UPnP search

	probe  *func(context.Context) error // a test's replacement for the probe
	search bool
}

// Direct is the protocol name for a host that has a public address itself.
const Direct = "direct"

// open creates the backend for an owner's gateway. It does no network I/O.
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
		b.programs, o.programsErr = holders.Default()
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

// runProbe returns nil if the gateway supports the backend's protocol, even if it reports a
// refusal: a request for a mapping reports the reason better. If a search fails, there is no
// device for such a request.
func (b *Backend) runProbe(ctx context.Context) error {
	if b.probe == nil {
		return nil
	}
	err := b.probe(ctx)
	if b.searches {
		return err
	}
	for _, reply := range []error{backends.ErrNotAuthorized, backends.ErrNetworkFailure, backends.ErrNoResources, backends.ErrPrivateWAN} {
		if errors.Is(err, reply) {
			return nil
		}
	}
	return err
}

// RefusedBy returns the name of the protocol by which the gateway replied that it does not support
// a request, or "" if the error is no such reply. The gateway supports the protocol then.
func RefusedBy(err error) string {
	var (
		result *pcp.ResultError
		fault  *upnp.Fault
	)
	switch {
	case !errors.Is(err, backends.ErrUnsupported):
	case errors.As(err, &result) && result.Code != pcp.UnsupportedVersion:
		return pcp.Name
	case errors.As(err, &fault):
		return upnp.Name
	}
	return ""
}

// Backends returns the client's backends, the preferred one first.
func (c *Client) Backends() []*Backend { return c.backends }

// Available returns those of the client's backends that replied, the preferred one first.
func (c *Client) Available() (out []*Backend) {
	c.owner.loop.Do(func() { out = c.available() })
	return out
}

func (c *Client) available() []*Backend {
	return slices.DeleteFunc(slices.Clone(c.backends), func(b *Backend) bool { return !b.isAvailable() })
}

func (b *Backend) isAvailable() bool { return b.probeErr == nil }

// backendsFor returns the backends in the order in which a spec is requested from them: first
// one that already holds the endpoint for this program, then those that replied, then the
// others.
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

// ByAvailability returns the client's backends, with those that replied first.
func (c *Client) ByAvailability() []*Backend {
	out := c.Available()
	for _, b := range c.backends {
		if !slices.Contains(out, b) {
			out = append(out, b)
		}
	}
	return out
}

// direct is the backend of a host that has a public address itself. There is no NAT, so it
// creates no mapping: the external endpoint is the internal one.
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
		reason = "there is no NAT in front of this host that could forward to another host"
	case r.Remote.IsValid():
		reason = "there is no NAT in front of this host that could admit only one peer"
	case r.Exact && r.External.Port() != r.Internal.Port():
		reason = "there is no NAT in front of this host that could translate a port"
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

// Protocol describes a protocol for port forwarding. To add a protocol, add it to Protocols;
// nothing else has to change.
type Protocol struct {
	Name     string
	Title    string                            // for messages
	IPv6     bool                              // IPv6 gateways may support it
	Keyed    bool                              // its mappings have a secret, which can be derived from a key
	Searches bool                              // it finds devices by a search on its own socket
	uses     func(BackendConfig) BackendConfig // returns the fields that the protocol uses
	open     func(BackendConfig, Key, *slog.Logger) (Prober, error)
}

// Prober is a backend that can determine whether its gateway supports the protocol.
type Prober interface {
	backends.Backend
	Probe(ctx context.Context) error
}

// Protocols lists all protocols, the preferred one first.
var Protocols = []Protocol{
	{Name: natpmp.Name, Title: "NAT-PMP", open: openNATPMP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, Announce: c.Announce}
	}},
	{Name: pcp.Name, Title: "PCP", IPv6: true, Keyed: true, open: openPCP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, Announce: c.Announce, Nonce: c.Nonce}
	}},
	{Name: upnp.Name, Title: "UPnP", IPv6: true, Searches: true, open: openUPnP, uses: func(c BackendConfig) BackendConfig {
		return BackendConfig{Interface: c.Interface, URL: c.URL, Only: c.Only, Gateway4: c.Gateway4, SSDP: c.SSDP, Announce: c.Announce, Notify: c.Notify, Wait: c.Wait}
	}},
}

// Names returns the names of Protocols.
func Names() (names []string) {
	for _, p := range Protocols {
		names = append(names, p.Name)
	}
	return names
}

// Find returns the protocol with the name, or false if there is none.
func Find(name string) (Protocol, bool) {
	for _, p := range Protocols {
		if p.Name == name {
			return p, true
		}
	}
	return Protocol{}, false
}

// Config returns the fields of a config that the protocol uses. Clients can then share a
// backend even if other fields differ.
func (p Protocol) Config(c BackendConfig) BackendConfig {
	c = p.uses(c)
	c.Protocol = p.Name
	return c
}

// Open creates the protocol's backend for a gateway. It does no I/O.
func (p Protocol) Open(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	return p.open(c, at, log)
}

// These constants set the retransmission of requests. They allow for lifetimes of one minute
// and for links that lose several packets in a row. A transmission occupies the gateway's
// queue for at most longestWait. All transmissions together take 14 seconds, which is enough
// for a slow gateway.
const (
	longestWait   = time.Second
	transmissions = 15
)

func openNATPMP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	return prober(natpmp.New(natpmp.Config{
		Gateway: at.Gateway, Interface: c.Interface, Source: at.Local, Transmissions: transmissions, LongestWait: longestWait,
		Announce: c.Announce, Logger: log,
	}))
}

func openPCP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	config := pcp.Config{
		Gateway: at.Gateway, Interface: c.Interface, Source: at.Local,
		// The intervals of RFC 6887 are too long for a request for which a caller waits.
		FirstWait: natpmp.DefaultFirstWait, Transmissions: transmissions, LongestWait: longestWait,
		Announce: c.Announce, Logger: log,
	}
	if c.Nonce != "" {
		config.Nonce = func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
			return pcp.DeriveNonce([]byte(c.Nonce), gateway, p, internal)
		}
	}
	return prober(pcp.New(config))
}

func openUPnP(c BackendConfig, at Key, log *slog.Logger) (Prober, error) {
	config := upnp.Config{
		Gateway: at.Gateway.Addr(), Gateway4: c.Gateway4, Interface: c.Interface, Source: at.Local, Only: c.Only, URL: c.URL,
		Announce: c.Announce, Notify: c.Notify, Wait: c.Wait, Logger: log,
	}
	if c.SSDP.IsValid() {
		config.SSDP = []netip.AddrPort{c.SSDP}
	}
	return prober(upnp.New(config))
}

// prober returns b as a Prober, or nil with the error.
func prober[B Prober](b B, err error) (Prober, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}
