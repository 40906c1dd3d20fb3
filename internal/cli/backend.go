package cli

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/forward"
)

// way is a gateway and how to ask it.
type way struct {
	gateway netip.AddrPort // port 0: the protocol's own
	iface   string
	source  netip.Addr
	key     []byte // that PCP nonces are derived from; nil: none
}

// opener makes the backend of one protocol for a gateway, without I/O: for what
// the facade has no call for, because it only knows the mappings of its process.
// Here is where another protocol joins unmap, list and gateways.
type opener struct {
	name  string
	title string // for people
	open  func(*app, way) (speaker, error)
	ipv6  bool // it is for gateways of that family too
	keyed bool // mappings have a secret, which is derived from the user's key
}

// speaker is a backend, and the question that tells whether it is spoken, with
// the external address where the answer has that.
type speaker struct {
	backends.Backend
	ask func(context.Context) (netip.Addr, error)
}

var openers = []opener{
	{name: natpmp.Name, title: "NAT-PMP", open: openNATPMP},
	{name: pcp.Name, title: "PCP", open: openPCP, ipv6: true, keyed: true},
}

func openNATPMP(a *app, w way) (speaker, error) {
	b, err := natpmp.New(natpmp.Config{
		Gateway: w.gateway, Interface: w.iface, Source: w.source, Logger: a.logger(),
	})
	if err != nil {
		return speaker{}, err
	}
	return speaker{b, b.ExternalAddr}, nil
}

func openPCP(a *app, w way) (speaker, error) {
	config := pcp.Config{
		Gateway: w.gateway, Interface: w.iface, Source: w.source, Logger: a.logger(),
		FirstWait: natpmp.DefaultFirstWait, Transmissions: natpmp.DefaultTransmissions,
	}
	if w.key != nil {
		config.Nonce = func(gateway netip.Addr, p backends.Protocol, internal netip.AddrPort) pcp.Nonce {
			return pcp.DeriveNonce(w.key, gateway, p, internal)
		}
	}
	b, err := pcp.New(config)
	if err != nil {
		return speaker{}, err
	}
	// The protocol tells its external address only with a mapping.
	return speaker{b, func(ctx context.Context) (netip.Addr, error) { return netip.Addr{}, b.Probe(ctx) }}, nil
}

func openerNames(openers []opener) []string {
	var names []string
	for _, o := range openers {
		names = append(names, o.name)
	}
	return names
}

// wanted are the openers that --backend leaves, in its order.
func (a *app) wanted() []opener {
	if a.settings.order == nil {
		return a.openers
	}
	var out []opener
	for _, name := range a.settings.order {
		if i := slices.IndexFunc(a.openers, func(o opener) bool { return o.name == name }); i >= 0 {
			out = append(out, a.openers[i])
		}
	}
	return out
}

// found is a backend that the gateway answered.
type found struct {
	opener
	backends.Backend
	gateway netip.AddrPort
	local   netip.Addr // what the gateway sees this host as
}

// lateTime bounds the question to a backend that the facade had no need to ask.
const lateTime = 500 * time.Millisecond

// withBackends finds the gateway as the facade does, and calls do with the
// backends that it answers, the preferred first. PCP nonces are derived from the
// key, if there is one.
func (a *app) withBackends(ctx context.Context, opts []forward.Option, key []byte, do func(context.Context, []found) error) error {
	f, err := forward.New(a.config())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	g, err := f.Gateway(ctx, opts...)
	if err != nil {
		return err
	}
	w := way{gateway: g.Addr, iface: g.Interface, source: g.Local, key: key}
	ctx, cancel := within(ctx, cmp.Or(a.settings.timeout, forward.DefaultTimeout))
	defer cancel()
	local := g.Local
	if !local.IsValid() {
		if local, err = f.LocalIP(ctx); err != nil {
			return err
		}
	}
	var all []found
	for _, o := range a.wanted() {
		if w.gateway.Addr().Is6() && !o.ipv6 {
			continue
		}
		s, err := o.open(a, w)
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		if slices.Contains(g.Backends, o.name) || a.answers(ctx, s) {
			all = append(all, found{o, s.Backend, w.gateway, local})
		}
	}
	return do(ctx, all)
}

// answers reports whether the gateway speaks a protocol that it was not asked
// about before: it may be what made a mapping.
func (a *app) answers(ctx context.Context, s speaker) bool {
	ctx, cancel := within(ctx, lateTime)
	defer cancel()
	_, err := s.ask(ctx)
	return verdict(err) == "yes" || errors.Is(err, backends.ErrNotAuthorized)
}
