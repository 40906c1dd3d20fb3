package cli

import (
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/backends"
)

// printListeners prints a remark about the ports on which no program of this host listens, and
// about those on which a program accepts only connections from this host itself.
func (a *app) printListeners(all []grantedMapping) {
	var unused, local []string
	for _, g := range all {
		if g.spec.to.IsValid() {
			continue
		}
		for _, m := range g.granted {
			addrs, err := a.listeners(m.Protocol, m.Internal)
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

// listenersFunc returns the local addresses on which programs of this host wait for connections
// or packets at the port of an internal endpoint. It fails if that is not known.
type listenersFunc func(p backends.Protocol, internal netip.AddrPort) ([]netip.Addr, error)
