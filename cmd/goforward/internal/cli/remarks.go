package cli

import (
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
)

// printOtherDevice prints a remark if a mapping is not on the gateway of the default route, or
// not on the named one, but on a UPnP device of another host.
func (a *app) printOtherDevice(m backends.Mapping) {
	if m.Backend != upnp.Name {
		return
	}
	gateway, device := a.currentRoute(&a.settings).gateway.Addr(), m.Gateway.Addr()
	if gateway.Is4() && device.Is4() && device != gateway && a.settings.igd == "" {
		a.messagef("The UPnP device at %v is used. It is not the gateway, %v: connections may not pass through it.\n", device, gateway)
	}
}

// printRemarks prints what the user should know about the mappings. If running is false, the
// program that is to listen on the ports does not run yet.
func (a *app) printRemarks(all []grantedMapping, running bool) {
	if len(all) == 0 || a.settings.quiet { // nothing would be printed
		return
	}
	first := all[0]
	if s := first.spec; s.pair && s.external != 0 && s.external != s.internal {
		a.messagef("Two plain numbers are the external and the internal port. To map both, add a protocol: %d %d/%s.\n", s.external, s.internal, first.granted[0].Protocol)
	}
	a.printOtherDevice(first.granted[0])
	for _, g := range all {
		if external := g.granted[0].External; g.spec.external != 0 && external.Port() != g.spec.external {
			a.messagef("The gateway granted external port %d instead of %d.\n", external.Port(), g.spec.external)
		}
	}
	a.printScope(first.granted[0].External.Addr())
	if first.spec.from.Addr().IsValid() {
		a.messagef("The gateway accepted the request to admit only %s. Test it: not every gateway keeps other hosts out.\n", endpointText(first.spec.from))
	}
	if running {
		a.printListeners(all)
	}
	firewall := "This host's own firewall"
	if first.spec.to.IsValid() {
		firewall = fmt.Sprintf("The firewall of %v", first.spec.to)
	}
	ports := "these ports"
	if len(all) == 1 {
		ports = portText(first.granted)
	}
	a.messagef("%s must also let %s in.\n", firewall, ports)
}

// printScope prints a remark if the internet cannot reach the external address.
func (a *app) printScope(addr netip.Addr) {
	switch scope := backends.ScopeOf(addr); {
	case addr.Is6() && scope != backends.ScopePublic:
		a.messagef("%v is not a public address.\n", addr)
	case scope == backends.ScopeUnknown:
		a.messagef("The gateway does not report its external address.\n")
	case scope == backends.ScopePrivate:
		a.messagef("%v is a private address: another NAT is between the gateway and the internet.\n", addr)
	case scope == backends.ScopeShared:
		a.messagef("%v is a shared address: the provider's NAT is between the gateway and the internet.\n", addr)
	}
}

// printListeners prints a remark about the ports on which no program of this host listens, and
// about those on which a program accepts only connections from this host itself.
func (a *app) printListeners(all []grantedMapping) {
	var unused, local []string
	for _, g := range all {
		if g.spec.to.IsValid() {
			continue
		}
		for _, m := range g.granted {
			addrs, err := a.listeners(m.Protocol, m.Internal.Port())
			text := fmt.Sprintf("%v port %d", m.Protocol, m.Internal.Port())
			if len(all) > 1 || len(g.granted) > 1 {
				text = fmt.Sprintf("%d/%v", m.Internal.Port(), m.Protocol)
			}
			switch {
			case err != nil: // not known on this system
			case len(addrs) == 0:
				unused = append(unused, text)
			case !m.Internal.Addr().IsLoopback() && allLoopback(addrs):
				local = append(local, text)
			}
		}
	}
	if len(unused) > 0 {
		a.messagef("No program on this host listens on %s yet.\n", joinSome(unused))
	}
	if len(local) > 0 {
		a.messagef("The program on %s listens only on a loopback address: the gateway cannot reach it.\n", joinSome(local))
	}
}

func allLoopback(addrs []netip.Addr) bool {
	for _, addr := range addrs {
		if !addr.IsLoopback() {
			return false
		}
	}
	return true
}
