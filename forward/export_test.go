package forward

import (
	"net/netip"

	"github.com/natforward/goforward/discover"
)

// LeadTo makes the kernel's ways to the internet lead to gateways, also to such
// as do not have the protocols' own ports; a family without one has no way out.
func (f *Forwarder) LeadTo(gateways ...netip.AddrPort) error {
	none := func() (discover.Gateway, error) { return discover.Gateway{}, discover.ErrNoRoute }
	f.routes = [2]func() (discover.Gateway, error){none, none}
	for _, gw := range gateways {
		local := gw.Addr() // on loopback
		w, err := f.open(wayKey{gateway: gw, source: local})
		if err != nil {
			return err
		}
		f.ways[wayKey{gateway: netip.AddrPortFrom(gw.Addr(), 0), source: local}] = w
		f.routes[familyOf(local)] = func() (discover.Gateway, error) {
			return discover.Gateway{Addr: gw.Addr(), Local: local}, nil
		}
	}
	return nil
}
