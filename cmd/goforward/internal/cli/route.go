package cli

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
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

// checkInterface returns an error if this host cannot send requests from the --interface.
func (s *settings) checkInterface() error {
	if s.iface == "" {
		return nil
	}
	ifi, err := net.InterfaceByName(s.iface)
	if err != nil {
		advice := "this host has no network interface"
		if names := interfaces(func(net.Interface) bool { return true }); names != "" {
			advice = "the interfaces of this host: " + names
		}
		return &usageError{text: fmt.Sprintf("--interface %s: no such interface", s.iface), advice: advice}
	}
	if ifi.Flags&net.FlagUp == 0 {
		return fmt.Errorf("%w: the interface %s is down%sswitch it on%s", forward.ErrNoGateway, s.iface, arrow, otherThan(s.iface))
	}
	if addrs, err := ifi.Addrs(); err == nil && len(addrs) == 0 {
		return fmt.Errorf("%w: the interface %s has no address%sconnect it to a network%s", forward.ErrNoGateway, s.iface, arrow, otherThan(s.iface))
	}
	return nil
}

// otherThan recommends the other interfaces that are up, or returns "".
func otherThan(name string) string {
	names := interfaces(func(ifi net.Interface) bool { return ifi.Name != name && ifi.Flags&net.FlagUp != 0 })
	if names == "" {
		return ""
	}
	return ", or use another interface: " + names
}

// interfaces returns the names of interfaces of this host, for people. It omits loopback.
func interfaces(include func(net.Interface) bool) string {
	var names []string
	all, _ := net.Interfaces() // after an error, none is recommended
	for _, ifi := range all {
		if ifi.Flags&net.FlagLoopback == 0 && include(ifi) {
			names = append(names, ifi.Name)
		}
	}
	return joinNames(names)
}

// isOwnAddress reports whether an interface of this host has the address.
func isOwnAddress(addr netip.Addr) bool {
	addrs, _ := net.InterfaceAddrs()
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == addr.WithZone("")
	})
}

// noRouteError is the error of gateways if there is no default route.
func (s *settings) noRouteError() error {
	if s.iface != "" {
		return fmt.Errorf("%w: there is no default route through %s%sname the gateway (--gateway)%s",
			forward.ErrNoGateway, s.iface, arrow, otherThan(s.iface))
	}
	return fmt.Errorf("%w: there is no default route%sconnect this host to a network, or name the gateway (--gateway)", forward.ErrNoGateway, arrow)
}
