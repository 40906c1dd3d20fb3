package discover

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// ErrNoRoute means that the kernel has no route to the destination: there is no route at
// all, the route is a blackhole, unreachable or prohibited route, or the destination is
// this host. Test for it with errors.Is; the text of the error contains the reason.
var ErrNoRoute = errors.New("discover: no route")

// The destinations that represent the internet in a route lookup: the addresses of
// a.root-servers.net. No packet is ever sent there. The address of a public resolver is
// unsuitable, because VPNs often have a separate route for it. The unspecified address is
// unsuitable too, because some kernels refuse to look it up.
var (
	internet4 = netip.AddrFrom4([4]byte{198, 41, 0, 4})
	internet6 = netip.AddrFrom16([16]byte{0x20, 0x01, 0x05, 0x03, 0xba, 0x3e, 13: 0x02, 15: 0x30})
)

// Gateway is the next hop of a route, with the interface and the local address that the
// route uses.
type Gateway struct {
	// Addr is the next hop, with a zone if it is IPv6 link-local. It is the zero Addr
	// if the route has no next hop, as in many tunnels.
	Addr netip.Addr

	// Local is the address of this host from which the kernel sends on this route,
	// with a zone if it is IPv6 link-local. Only Gateways can return the zero Addr
	// here, for an interface without an address of the address family.
	Local netip.Addr

	// Interface and Index are the name and the index of the outgoing interface.
	// Interface is empty if the interface no longer exists.
	Interface string
	Index     int

	// Metric is the metric of the route as the system reports it. A lower metric is
	// preferred. It is 0 if the system has no metrics (macOS, FreeBSD, NetBSD). On
	// Windows, it includes the metric of the interface.
	Metric int
}

// Default returns the route to the IPv4 internet, from the kernel's own lookup of a
// global address. It fails with ErrNoRoute if there is no route.
func Default() (Gateway, error) { return Route(internet4) }

// Default6 is Default for IPv6.
func Default6() (Gateway, error) { return Route(internet6) }

// Route returns the route to dst, from the kernel's own lookup. If dst is on a network of
// this host, the route has no next hop, and Addr is the zero Addr. Route fails with
// ErrNoRoute if there is no route to dst, or if dst is this host.
func Route(dst netip.Addr) (Gateway, error) {
	dst = dst.Unmap()
	switch {
	case !dst.IsValid() || dst.IsUnspecified():
		return Gateway{}, fmt.Errorf("discover: %v is not a valid destination", dst)
	case dst.IsLoopback():
		return Gateway{}, noRoute(dst, errThisHost)
	}
	g, err := lookup(dst)
	switch {
	case err != nil:
		return Gateway{}, err
	case g.Local.WithZone("") == dst.WithZone(""):
		return Gateway{}, noRoute(dst, errThisHost)
	case !g.Local.IsValid() || g.Local.IsUnspecified() || g.Local.IsLoopback():
		// Linux falls back to ::1 if the interface has no address yet.
		return Gateway{}, noRoute(dst, fmt.Errorf("no address to send from on %s", g.Interface))
	}
	return g, nil
}

var errThisHost = errors.New("it is this host")

// noRoute returns an error that wraps ErrNoRoute and the reason, so that callers can also
// test for an error number of the system.
func noRoute(dst netip.Addr, reason error) error {
	return fmt.Errorf("%w to %s: %w", ErrNoRoute, destination(dst), reason)
}

// destination describes a destination in errors. The addresses that represent the internet
// would mislead a reader.
func destination(dst netip.Addr) string {
	switch dst {
	case internet4:
		return "the internet"
	case internet6:
		return "the IPv6 internet"
	}
	return dst.String()
}

// Gateways returns all default routes: IPv4 before IPv6, with the preferred route of each
// address family first. The preferred route is the one that Default or Default6 returns.
// It is listed even if its prefix is longer than 0 bits: VPNs often override the default
// route with two routes to one half of the internet each.
//
// The other routes are sorted by routing table and then by metric. On Linux, the tables
// main and default precede policy tables. Gateways lists policy tables too, because VPNs
// and multi-homed hosts keep their default route there. On macOS, routes that are scoped
// to an interface come last.
//
// Gateways omits routes of the types blackhole, unreachable and prohibit. If there is no
// default route, the list is empty and the error is nil.
func Gateways() ([]Gateway, error) {
	routes, err := defaultRoutes()
	if err != nil {
		return nil, err
	}
	var used []defaultRoute
	for _, dst := range []netip.Addr{internet4, internet6} {
		g, err := Route(dst)
		if errors.Is(err, ErrNoRoute) {
			continue
		}
		if err != nil {
			return nil, err
		}
		used = append(used, defaultRoute{Gateway: g, is6: dst.Is6()})
	}
	return sortGateways(routes, used), nil
}

// Through returns the preferred default route of an address family through an interface.
// It fails with ErrNoRoute if there is none.
func Through(iface string, is6 bool) (Gateway, error) {
	all, err := Gateways()
	if err != nil {
		return Gateway{}, err
	}
	for _, g := range all {
		if g.Interface == iface && g.Local.IsValid() && g.Local.Is6() == is6 {
			return g, nil
		}
	}
	return Gateway{}, fmt.Errorf("%w out through interface %q", ErrNoRoute, iface)
}

// defaultRoute is a default route with the keys by which Gateways sorts it.
type defaultRoute struct {
	Gateway
	is6  bool // the address family; the addresses may all be zero
	rank int  // compared before the metric: lower is preferred
}

// sortGateways sorts the routes as documented at Gateways. The used routes, at most one of
// each address family, precede the other routes of their family.
func sortGateways(routes, used []defaultRoute) []Gateway {
	list := slices.Clone(routes)
	for _, u := range used {
		u.rank = -1
		same := func(r defaultRoute) bool {
			return r.is6 == u.is6 && r.rank >= 0 && r.Addr == u.Addr && r.Index == u.Index
		}
		// Several tables can contain the same next hop. Remove the entry with the metric
		// of the lookup, or else the first entry with the same next hop and interface:
		// u replaces it.
		if i := slices.IndexFunc(list, func(r defaultRoute) bool { return same(r) && r.Metric == u.Metric }); i >= 0 {
			list = slices.Delete(list, i, i+1)
		} else if i := slices.IndexFunc(list, same); i >= 0 {
			list = slices.Delete(list, i, i+1)
		}
		list = append(list, u)
	}
	slices.SortStableFunc(list, func(a, b defaultRoute) int {
		return cmp.Or(
			cmp.Compare(family(a.is6), family(b.is6)),
			cmp.Compare(a.rank, b.rank),
			cmp.Compare(a.Metric, b.Metric),
		)
	})
	out := make([]Gateway, 0, len(list))
	for _, r := range list {
		if !slices.Contains(out, r.Gateway) {
			out = append(out, r.Gateway)
		}
	}
	return out
}

func family(is6 bool) int {
	if is6 {
		return 6
	}
	return 4
}
