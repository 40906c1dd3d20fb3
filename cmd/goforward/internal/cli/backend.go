package cli

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
)

// way is a gateway and how to ask it.
type way struct {
	gateway netip.AddrPort // port 0: the protocol's own
	iface   string
	source  netip.Addr
	key     []byte           // that PCP nonces are derived from; nil: none
	igd     string           // the description of its UPnP device; empty: it is searched for
	ssdp    []netip.AddrPort // where that is done; nil: where the standard says

	// Where to listen for what is announced; the zero values: where the standards say.
	announce, notify netip.AddrPort
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
	// devices finds all that speak it, the preferred first. Nil: the gateway is
	// the only one.
	devices func(context.Context) ([]upnp.Gateway, error)
}

var openers = []opener{
	{name: natpmp.Name, title: "NAT-PMP", open: openNATPMP},
	{name: pcp.Name, title: "PCP", open: openPCP, ipv6: true, keyed: true},
	{name: upnp.Name, title: "UPnP", open: openUPnP, ipv6: true},
}

func openNATPMP(a *app, w way) (speaker, error) {
	b, err := natpmp.New(natpmp.Config{
		Gateway: w.gateway, Interface: w.iface, Source: w.source, Announce: w.announce, Logger: a.logger(),
	})
	if err != nil {
		return speaker{}, err
	}
	return speaker{Backend: b, ask: b.ExternalAddr}, nil
}

func openPCP(a *app, w way) (speaker, error) {
	config := pcp.Config{
		Gateway: w.gateway, Interface: w.iface, Source: w.source, Announce: w.announce, Logger: a.logger(),
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
	return speaker{Backend: b, ask: probe(b.Probe)}, nil
}

// searchTime bounds the search for UPnP devices, which may take a second to
// answer.
const searchTime = 1500 * time.Millisecond

func openUPnP(a *app, w way) (speaker, error) {
	config := upnp.Config{
		Gateway: w.gateway.Addr(), Interface: w.iface, Source: w.source,
		SSDP: w.ssdp, Notify: w.notify, Wait: searchTime, Logger: a.logger(),
	}
	if t := a.settings.timeout; t != 0 {
		config.Wait = min(searchTime, t/2) // there is more to do
	}
	if host, err := igdHost(w.igd); err == nil && host.Is4() == w.gateway.Addr().Is4() {
		config.URL = w.igd
	}
	b, err := upnp.New(config)
	if err != nil {
		return speaker{}, err
	}
	return speaker{Backend: b, ask: probe(b.Probe), devices: b.Gateways}, nil
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
