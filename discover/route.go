package discover

import (
	"cmp"
	"errors"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// errMalformed is wrapped by every error about bytes that do not have the form that the
// system documents.
var errMalformed = errors.New("malformed")

// route has the properties of a kernel route that this package uses, for every system.
type route struct {
	dst     netip.Prefix // always valid; it determines the address family
	via     netip.Addr   // next hop, without zone; the zero Addr: none
	src     netip.Addr   // preferred source, without zone; the zero Addr: not reported
	index   int          // interface; 0: not reported
	metric  int64        // a number of 32 bits, on Windows the sum of two
	rank    int          // see defaultRoute
	refusal string       // why the route is not usable; empty: the route is usable
	cloned  bool         // a cached result of a lookup, and not an entry of the table
}

// isDefault reports whether Gateways lists r.
func (r route) isDefault() bool {
	return r.dst.Bits() == 0 && r.refusal == "" && !r.cloned
}

// is6 reports whether r is a route to IPv6 destinations. Its next hop can have the other
// address family.
func (r route) is6() bool { return r.dst.Addr().Is6() }

// gateway converts r to a Gateway. If local is the zero Addr, it uses r.src.
func (r route) gateway(name string, local netip.Addr) Gateway {
	if !local.IsValid() {
		local = r.src
	}
	return Gateway{
		Addr:      withZone(r.via, name, r.index),
		Local:     withZone(local, name, r.index),
		Interface: name,
		Index:     r.index,
		Metric:    int(min(r.metric, math.MaxInt)), // an int may have 32 bits too
	}
}

// withZone adds the interface as the zone of an IPv6 link-local address, which is ambiguous
// without a zone.
func withZone(a netip.Addr, name string, index int) netip.Addr {
	if !a.Is6() || !a.IsLinkLocalUnicast() {
		return a
	}
	return a.WithZone(cmp.Or(name, strconv.Itoa(index)))
}

// longestMatch returns the route with the longest prefix that contains dst. It considers
// only routes on the interface with the given index and routes without an interface, or all
// routes if index is 0. Among equal prefixes, rank and then metric decide.
func longestMatch(routes []route, dst netip.Addr, index int) (route, bool) {
	best, found := route{}, false
	for _, r := range routes {
		if !r.dst.Contains(dst.WithZone("")) || index != 0 && r.index != 0 && r.index != index {
			continue
		}
		if !found || r.dst.Bits() > best.dst.Bits() ||
			r.dst.Bits() == best.dst.Bits() && (r.rank < best.rank || r.rank == best.rank && r.metric < best.metric) {
			best, found = r, true
		}
	}
	return best, found
}

// interfaceAt returns the name and the addresses of an interface, or zero values if it no
// longer exists.
func interfaceAt(index int) (name string, addrs []netip.Prefix) {
	ifi, err := net.InterfaceByIndex(index)
	if err != nil {
		return "", nil
	}
	list, err := ifi.Addrs()
	if err != nil {
		return ifi.Name, nil
	}
	return ifi.Name, prefixes(list)
}

// prefixes converts the addresses of an interface from the types of package net.
func prefixes(list []net.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		ones, _ := n.Mask.Size()
		out = append(out, netip.PrefixFrom(addr.Unmap(), ones))
	}
	return out
}

// pickLocal guesses the address of an interface from which the kernel sends to via. It is
// for routes that the kernel does not use at present, so that a lookup does not return
// them. pickLocal prefers an address on the network of via, then a global address, then a
// unique local IPv6 address, then a link-local address. It returns the zero Addr if no
// address has the address family.
func pickLocal(addrs []netip.Prefix, via netip.Addr, is6 bool) netip.Addr {
	var candidates []netip.Prefix
	for _, p := range addrs {
		if p.Addr().Is6() == is6 {
			candidates = append(candidates, p)
		}
	}
	if len(candidates) == 0 {
		return netip.Addr{}
	}
	return slices.MinFunc(candidates, func(a, b netip.Prefix) int {
		return cmp.Compare(distance(a, via), distance(b, via))
	}).Addr()
}

// distance ranks an address for pickLocal: lower is preferred.
func distance(p netip.Prefix, via netip.Addr) int {
	switch {
	case p.Addr().IsLinkLocalUnicast():
		return 3
	case p.Contains(via):
		return 0
	case p.Addr().IsPrivate() && p.Addr().Is6():
		return 2
	}
	return 1
}
