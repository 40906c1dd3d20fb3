package cli

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/internal/gateway"
)

// way is a gateway and how to ask it.
type way struct {
	gateway netip.AddrPort // port 0: the protocol's own
	iface   string
	source  netip.Addr
	key     []byte         // that PCP nonces are derived from; nil: none
	igd     string         // the description of its UPnP device; empty: it is searched for
	ssdp    netip.AddrPort // where that is done; the zero value: where the standard says

	// Where to listen for what is announced; the zero values: where the standards say.
	announce, notify netip.AddrPort
}

// opener makes the backend of one protocol for a gateway, without I/O: for what
// the facade has no call for, because it only knows the mappings of its process.
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
	// devices finds all that speak it, the preferred first. Nil: the gateway is
	// the only one.
	devices func(context.Context) ([]upnp.Gateway, error)
}

// openers are those of all protocols of the facade.
var openers = func() (out []opener) {
	for _, p := range gateway.Protocols {
		out = append(out, opener{name: p.Name, title: p.Title, ipv6: p.IPv6, keyed: p.Keyed, open: func(a *app, w way) (speaker, error) {
			return open(p, a, w)
		}})
	}
	return out
}()

// searchTime bounds the search for UPnP devices, which may take a second to
// answer.
const searchTime = 1500 * time.Millisecond

func open(p gateway.Protocol, a *app, w way) (speaker, error) {
	config := gateway.BackendConfig{
		Interface: w.iface, Announce: w.announce, Nonce: string(w.key), SSDP: w.ssdp, Notify: w.notify, Wait: searchTime,
	}
	if t := a.settings.timeout; t != 0 {
		config.Wait = min(searchTime, t/2) // there is more to do
	}
	if host, err := igdHost(w.igd); err == nil && host.Is4() == w.gateway.Addr().Is4() {
		config.URL = w.igd
	}
	b, err := p.Open(config, gateway.Key{Gateway: w.gateway, Local: w.source}, a.logger())
	if err != nil {
		return speaker{}, err
	}
	s := speaker{Backend: b, ask: probe(b.Probe)}
	switch b := b.(type) {
	case *natpmp.Backend:
		s.ask = b.ExternalAddr // is what Probe asks, too; the others tell it only with a mapping
	case *upnp.Backend:
		s.devices = b.Gateways
	}
	return s, nil
}

// probe is a question whose answer does not have the external address.
func probe(ask func(context.Context) error) func(context.Context) (netip.Addr, error) {
	return func(ctx context.Context) (netip.Addr, error) { return netip.Addr{}, ask(ctx) }
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
