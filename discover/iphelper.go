package discover

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// errMissing means that the system lacks a function. Wine lacks some functions of Windows.
var errMissing = fmt.Errorf("missing function: %w", errors.ErrUnsupported)

// ipHelper has the functions of the IP helper API of Windows that find routes. A function
// that the system lacks fails with errMissing. A function that the system does not
// implement fails with another error that wraps errors.ErrUnsupported.
type ipHelper struct {
	// bestRoute returns the route to dst with its source address. If index is not 0, the
	// route uses the interface with that index. It fails with ErrNoRoute if there is no
	// route.
	bestRoute func(dst netip.Addr, index int) (route, error)

	// table returns the routing table of an address family, with the metrics of the routes
	// alone. It is empty if the system does not support the address family.
	table func(is6 bool) ([]route, error)

	// interfaceMetric returns the metric that Windows adds to the metric of each route on
	// the interface.
	interfaceMetric func(index int, is6 bool) (int64, error)

	// interfaceAt is the function interfaceAt.
	interfaceAt func(index int) (name string, addrs []netip.Prefix)
}

// lookup returns the route to dst, through the interface with the index unless it is 0. If
// the system does not support the lookup, it searches the routing table.
func (h ipHelper) lookup(dst netip.Addr, index int) (Gateway, error) {
	r, err := h.bestRoute(dst, index)
	if errors.Is(err, errors.ErrUnsupported) {
		r, err = h.bestOfTable(dst, index)
	} else if err == nil {
		r.metric += h.metric(r)
	}
	switch {
	case errors.Is(err, ErrNoRoute):
		return Gateway{}, err
	case err != nil:
		return Gateway{}, fmt.Errorf("discover: route to %s: %w", destination(dst), err)
	case r.refusal != "":
		return Gateway{}, noRoute(dst, errors.New(r.refusal))
	}
	name, _ := h.interfaceAt(r.index)
	return r.gateway(name, r.src), nil
}

// bestOfTable returns the route with the longest prefix that contains dst, and among equal
// prefixes the route with the lowest metric. Its source address is a guess of pickLocal.
func (h ipHelper) bestOfTable(dst netip.Addr, index int) (route, error) {
	routes, err := h.routes(dst.Is6())
	if err != nil {
		return route{}, err
	}
	r, ok := longestMatch(routes, dst, index)
	if !ok {
		return route{}, noRoute(dst, errors.New("the routing table has none"))
	}
	hop := r.via
	if !hop.IsValid() {
		hop = dst.WithZone("")
	}
	_, addrs := h.interfaceAt(r.index)
	if dst.IsLinkLocalUnicast() { // a reply to another source could not return
		addrs = slices.DeleteFunc(addrs, func(p netip.Prefix) bool { return !p.Addr().IsLinkLocalUnicast() })
	}
	r.src = pickLocal(addrs, hop, r.is6())
	return r, nil
}

// routes returns the routing table of an address family. The metrics include the metrics of
// the interfaces.
func (h ipHelper) routes(is6 bool) ([]route, error) {
	routes, err := h.table(is6)
	if err != nil {
		return nil, err
	}
	for i := range routes {
		routes[i].metric += h.metric(routes[i])
	}
	return routes, nil
}

// metric returns the metric of the interface of r, or 0 if the interface no longer exists or
// if the system does not report it.
func (h ipHelper) metric(r route) int64 {
	n, err := h.interfaceMetric(r.index, r.is6())
	if err != nil {
		return 0
	}
	return n
}

func (h ipHelper) defaultRoutes() ([]defaultRoute, error) {
	var out []defaultRoute
	for _, dst := range []netip.Addr{internet4, internet6} {
		routes, err := h.routes(dst.Is6())
		if err != nil {
			return nil, fmt.Errorf("discover: list routes: %w", err)
		}
		for _, r := range routes {
			if !r.isDefault() {
				continue
			}
			name, addrs := h.interfaceAt(r.index)
			local := pickLocal(addrs, r.via, r.is6())
			if best, err := h.bestRoute(dst, r.index); err == nil && best.index == r.index && best.via == r.via {
				local = best.src
			}
			out = append(out, defaultRoute{Gateway: r.gateway(name, local), is6: r.is6()})
		}
	}
	return out, nil
}
