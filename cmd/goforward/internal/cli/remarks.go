package cli

import (
	"fmt"
	"net/netip"
	"strings"

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

// remarkOptions say what printRemarks is to print about the way to the program.
type remarkOptions struct {
	running  bool // the program that is to listen on the ports may run already
	verified bool // a measurement follows
}

// printRemarks prints what the user should know about the mappings.
func (a *app) printRemarks(all []grantedMapping, o remarkOptions) {
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
	if !o.verified {
		a.messagef("%s\n", a.provenText(all, o.running))
	}
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

// provenText says in one line what is proven about the mappings, which is that the gateway granted
// them and whether a program listens, and how to prove more. Nothing is sent for it.
func (a *app) provenText(all []grantedMapping, running bool) string {
	first := all[0]
	ports := "these ports"
	if len(all) == 1 {
		ports = portText(first.granted)
	}
	if first.spec.to.IsValid() {
		return fmt.Sprintf("Granted, not proven: the firewall of %v must also let %s in.", first.spec.to, ports)
	}
	var used, unused, local []string
	var checks []*portCheck
	for _, g := range all {
		for _, m := range g.granted {
			if m.Protocol != backends.TCP && m.Protocol != backends.UDP {
				continue
			}
			checks = append(checks, &portCheck{spec: g.spec, mapping: m})
			addrs, err := a.listeners(m.Protocol, m.Internal.Port())
			text := fmt.Sprintf("%v port %d", m.Protocol, m.Internal.Port())
			if len(all) > 1 || len(g.granted) > 1 {
				text = fmt.Sprintf("%d/%v", m.Internal.Port(), m.Protocol)
			}
			switch {
			case err != nil || !running: // not known
			case len(addrs) == 0:
				unused = append(unused, text)
			case !m.Internal.Addr().IsLoopback() && allLoopback(addrs):
				local = append(local, text)
			default:
				used = append(used, text)
			}
		}
	}
	var known []string
	if len(unused) > 0 {
		known = append(known, fmt.Sprintf("no program on this host listens on %s yet", joinSome(unused)))
	}
	if len(local) > 0 {
		known = append(known, fmt.Sprintf("the program on %s listens only on a loopback address, which the gateway cannot reach", joinSome(local)))
	}
	if len(used) > 0 {
		known = append(known, fmt.Sprintf("a program listens on %s, but whether connections arrive was not checked", joinSome(used)))
	}
	if len(known) > 0 && len(all) == 1 && len(first.granted) == 1 {
		ports = "it"
	}
	if len(known) == 0 {
		known = append(known, "whether connections arrive was not checked")
	}
	text := fmt.Sprintf("Granted, not proven: %s. This host's own firewall must also let %s in.", strings.Join(known, "; "), ports)
	if len(checks) > 0 {
		text += " To measure: goforward verify " + a.portArguments(checks)
	}
	return text
}

func allLoopback(addrs []netip.Addr) bool {
	for _, addr := range addrs {
		if !addr.IsLoopback() {
			return false
		}
	}
	return true
}
