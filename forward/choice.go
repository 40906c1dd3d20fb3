package forward

import (
	"net/netip"

	"github.com/natforward/goforward/internal/gateway"
)

// Choice records which protocol a gateway supported when it was used last. With it, the next
// run of a program finds the gateway sooner. A Choice is never trusted: the gateway is asked
// again, and if it does not reply at once, all protocols are probed.
type Choice struct {
	// Gateway is the address of the gateway. If its port is 0, it is the port of the standard.
	Gateway netip.AddrPort `json:"gateway"`
	// Interface is the interface toward the gateway, or empty if it is unknown.
	Interface string `json:"interface,omitempty"`
	// Protocol is the name of the protocol: "natpmp", "pcp" or "upnp".
	Protocol string `json:"protocol"`
	// URL is the URL of the UPnP root description, if Protocol is "upnp".
	URL string `json:"url,omitempty"`
}

// check returns an error that wraps ErrInvalid if a Choice cannot be a result of Choices.
func (c Choice) check() error {
	switch _, is := gateway.Find(c.Protocol); {
	case !c.Gateway.Addr().IsValid() || c.Gateway.Addr().IsUnspecified():
		return invalid("Config.Choices: a gateway needs an address")
	case !is:
		return invalid("Config.Choices: no protocol %q, the protocols are %v", c.Protocol, gateway.Names())
	case c.URL == "":
	default:
		if _, err := upnpHost(c.URL); err != nil {
			return invalid("Config.Choices: %v", err)
		}
	}
	return nil
}

// Choices returns the protocols that the gateways in use are known to support, for
// Config.Choices of the next run: the preferred protocol of a gateway first. Protocols that were
// not probed, because another one replied, are missing. The result is nil before the first call that
// needs a gateway, with ready-made backends, and after Close.
func (f *Forwarder) Choices() []Choice {
	var routes []*route
	f.loop.Do(func() {
		for _, r := range f.current {
			if r != nil {
				routes = append(routes, r)
			}
		}
	})
	var out []Choice
	for _, r := range routes {
		for _, h := range r.client.Known() {
			out = append(out, Choice{Gateway: r.path.gateway, Interface: r.path.iface, Protocol: h.Protocol, URL: h.URL})
		}
	}
	return out
}

// hintsFor returns what Config.Choices has about the gateway of a path.
func (f *Forwarder) hintsFor(p gatewayPath) (hints []gateway.Hint) {
	for _, c := range f.config.Choices {
		at := gatewayPath{gateway: c.Gateway}.ownerKey().Gateway
		if at == p.ownerKey().Gateway && (c.Interface == p.iface || c.Interface == "" || p.iface == "") {
			hints = append(hints, gateway.Hint{Protocol: c.Protocol, URL: c.URL})
		}
	}
	return hints
}
