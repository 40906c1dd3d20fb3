package cli

import (
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/discover"
)

// wayOut is where a gateway is reached, as far as it is compared.
type route struct {
	gateway netip.AddrPort // the zero value: there is none
	iface   string
	local   netip.Addr
	reason  string // why there is none
}

// wayOutOf is the way to the gateway that was named, the one by the interface
// that was named, or the kernel's to the internet.
func currentRoute(s *settings) route {
	g, err := lookUpRoute(s)
	named := s.namedGateway()
	switch {
	case err != nil && named.IsValid(): // it may be there all the same
		return route{gateway: named}
	case err != nil:
		return route{reason: err.Error()}
	case named.IsValid():
		return route{gateway: named, iface: g.Interface, local: g.Local}
	}
	return route{gateway: netip.AddrPortFrom(g.Addr, 0), iface: g.Interface, local: g.Local}
}

func lookUpRoute(s *settings) (discover.Gateway, error) {
	named := s.namedGateway()
	switch {
	case named.IsValid():
		return discover.Route(named.Addr())
	case s.iface == "":
		return discover.Default()
	}
	return discover.Through(s.iface, false)
}

// text is the way for people.
func (w route) text() string {
	switch {
	case w == route{reason: w.reason}:
		return "none: " + w.reason
	case w.iface == "":
		return w.name()
	}
	return fmt.Sprintf("%s by %s, from %s", w.name(), w.iface, addrText(w.local))
}

func (w route) name() string {
	if !w.gateway.Addr().IsValid() {
		return "no next hop"
	}
	return endpointText(w.gateway)
}
