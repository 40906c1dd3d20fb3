package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/natforward/goforward/discover"
)

// route is the route to a gateway. watch compares routes: it starts again if they differ.
type route struct {
	gateway netip.AddrPort // the zero value: none
	iface   string
	local   netip.Addr
	reason  string // why there is no route
}

// currentRoute returns the route to the named gateway, or through the named interface, or the
// default route of the kernel. Without the address of --source, or the interface of
// --interface, there is no route.
func currentRoute(s *settings) route {
	if err := s.checkSource(); err != nil {
		reason, _, _ := strings.Cut(errorText(err), "\n")
		return route{reason: reason}
	}
	g, err := lookUpRoute(s)
	named := s.namedGateway()
	switch {
	case err != nil && named.IsValid(): // the gateway may exist nevertheless
		return route{gateway: named}
	case err != nil:
		return route{reason: errorText(err)}
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

// text describes the route to people.
func (r route) text() string {
	switch {
	case r == route{reason: r.reason}:
		return "none: " + r.reason
	case r.iface == "":
		return r.name()
	}
	return fmt.Sprintf("%s on %s, from %s", r.name(), r.iface, addrText(r.local))
}

func (r route) name() string {
	if !r.gateway.Addr().IsValid() {
		return "no next hop"
	}
	return endpointText(r.gateway)
}
