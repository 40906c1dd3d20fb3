package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
)

// Backend is a backend of an owner, and what is known of it.
type Backend struct {
	backends.Backend
	config   BackendConfig
	name     string
	probe    func(context.Context) error // nil: it needs none
	searches bool                        // its device is searched for, by a socket of its own

	// Owned by the owner's loop.
	verdict error     // of the last probe: nil if it answered, errPending if there is none
	probed  time.Time // when that failed
	watched bool
	pace    Pacer     // of recoveries
	lost    time.Time // when its gateway last lost its state, if it told
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
	b := &Backend{config: c, name: c.Protocol, verdict: errPending}
	p, is := Find(c.Protocol)
	switch {
	case is:
		made, err := p.Open(c, o.key, o.log())
		if err != nil {
			return nil, fmt.Errorf("forward: %w", err)
		}
		b.Backend, b.probe, b.searches = made, made.Probe, p.Searches
	case c.Protocol == Direct:
		b.Backend = direct{o.key.Local}
	default:
		b.Backend, b.name, b.searches = c.Ready, c.Ready.String(), c.search
		if c.probe != nil {
			b.probe = *c.probe
		} else {
			b.verdict = nil
		}
	}
	return b, nil
}

// ask returns nil if the gateway speaks the backend's protocol, even if it refuses:
// what it refuses, the mapping itself will tell better.
func (b *Backend) ask(ctx context.Context) error {
	if b.probe == nil {
		return nil
	}
	err := b.probe(ctx)
	for _, speaks := range []error{backends.ErrNotAuthorized, backends.ErrNetworkFailure, backends.ErrNoResources, backends.ErrPrivateWAN} {
		if errors.Is(err, speaks) {
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
	return slices.DeleteFunc(slices.Clone(c.backends), func(b *Backend) bool { return b.verdict != nil })
}

// candidates returns the backends in the order in which to try them for a spec: one that
// holds the endpoint for this program already, those that answered, the others.
func (c *Client) candidates(g *group, s *Spec) []*Backend {
	rank := func(b *Backend) int {
		switch e := g.entry(b.name, Member{Protocol: s.Protocols[0]}); {
		case e != nil && e.isHeld():
			return 0
		case b.verdict == nil:
			return 1
		}
		return 2
	}
	out := slices.Clone(c.backends)
	slices.SortStableFunc(out, func(a, b *Backend) int { return rank(a) - rank(b) })
	return out
}

// InOrder returns the client's backends, those that answered first.
func (c *Client) InOrder() []*Backend {
	out := c.Available()
	for _, b := range c.backends {
		if !slices.Contains(out, b) {
			out = append(out, b)
		}
	}
	return out
}
