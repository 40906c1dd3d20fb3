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

// errMalformed is wrapped by every error about bytes that are not what the
// system is documented to hand out.
var errMalformed = errors.New("malformed")

// A route is a kernel route as far as it matters here, whichever system told it.
type route struct {
	dst     netip.Prefix // always valid: it tells the family
	via     netip.Addr   // next hop, without zone; the zero Addr: none
	src     netip.Addr   // preferred source, without zone; the zero Addr: not told
	index   int          // interface; 0: not told
	metric  int64        // of 32 bits, and on Windows the sum of two
	rank    int          // see row
	refusal string       // why it leads nowhere; empty: it leads somewhere
	cloned  bool         // a cached answer rather than an entry of the table
}

// isDefault tells whether r belongs into the list of Gateways.
func (r route) isDefault() bool {
	return r.dst.Bits() == 0 && r.refusal == "" && !r.cloned
}

// is6 tells the family of r's destinations; its next hop can be of the other.
func (r route) is6() bool { return r.dst.Addr().Is6() }

// gateway is r in the form handed out. With local the zero Addr, r.src stands.
func (r route) gateway(name string, local netip.Addr) Gateway {
	if !local.IsValid() {
		local = r.src
	}
	return Gateway{
		Addr:      zoned(r.via, name, r.index),
		Local:     zoned(local, name, r.index),
		Interface: name,
		Index:     r.index,
		Metric:    int(min(r.metric, math.MaxInt)), // an int may have 32 bits too
	}
}

// zoned names the interface of a link-local IPv6 address, which means nothing
// without it.
func zoned(a netip.Addr, name string, index int) netip.Addr {
	if !a.Is6() || !a.IsLinkLocalUnicast() {
		return a
	}
	return a.WithZone(cmp.Or(name, strconv.Itoa(index)))
}

// longest returns the route with the longest prefix that contains dst, among
// those on the interface with that index, or on any if index is 0.
func longest(routes []route, dst netip.Addr, index int) (route, bool) {
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

// interfaceAt returns name and addresses of an interface, or nothing if it is
// gone by now.
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

// prefixes converts what package net calls addresses of interfaces.
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

// pickLocal guesses which of an interface's addresses the kernel sends from
// towards via, for routes that it does not use now and so cannot be asked about:
// one on the network of via, else a global one, else a link-local one. It returns
// the zero Addr if there is none of the family.
func pickLocal(addrs []netip.Prefix, via netip.Addr, is6 bool) netip.Addr {
	var fit []netip.Prefix
	for _, p := range addrs {
		if p.Addr().Is6() == is6 {
			fit = append(fit, p)
		}
	}
	if len(fit) == 0 {
		return netip.Addr{}
	}
	return slices.MinFunc(fit, func(a, b netip.Prefix) int {
		return cmp.Compare(distance(a, via), distance(b, via))
	}).Addr()
}

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
