package forward

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
)

// listenSpecs are what makes a socket reachable: the IPv4 mapping, the IPv6
// pinhole, or both in this order.
func (f *Forwarder) listenSpecs(p backends.Protocol, network string, bound netip.AddrPort, opts []Option) ([]spec, error) {
	addr, port := bound.Addr().Unmap(), bound.Port()
	if addr.IsLoopback() || addr.IsMulticast() || addr.Is6() && addr.IsLinkLocalUnicast() {
		return nil, invalid("no other host can be let in to %v: leave the address out, or name another", addr)
	}
	w, err := f.listenSpec(p, port, opts)
	if err != nil {
		return nil, err
	}
	if !addr.IsUnspecified() {
		w.Internal = netip.AddrPortFrom(addr, port)
	}
	mapping, pinhole := f.families(network, addr, w.Remote.Addr().Unmap())
	switch {
	case !mapping && !pinhole:
		return nil, invalid("From %v is of another family than what listens, %v", w.Remote.Addr(), bound)
	case !mapping && w.Exact && w.External != 0 && w.External != port:
		return nil, invalid("Exact, but a pinhole translates no port: external port %d, and %v listens", w.External, bound)
	}
	var specs []spec
	if mapping {
		w4 := w
		w4.ipv4 = true
		specs = append(specs, w4)
	}
	if pinhole {
		w6 := w
		w6.ipv6, w6.External, w6.Address, w6.Lifetime = true, 0, netip.Addr{}, min(w.Lifetime, longestPinhole)
		specs = append(specs, w6)
	}
	return specs, nil
}

// listenSpec is the sum of the options for a port that somebody listens on.
func (f *Forwarder) listenSpec(p backends.Protocol, port uint16, opts []Option) (spec, error) {
	w, err := f.newSpec(nil)
	if err != nil {
		return spec{}, err
	}
	w.Protocols, w.Internal = []backends.Protocol{p}, netip.AddrPortFrom(netip.Addr{}, port)
	if err := w.add(opts); err != nil {
		return spec{}, err
	}
	for _, wrong := range []struct {
		given bool
		why   string
	}{
		{slices.Contains(w.given, optionProtocol), "an option names a protocol: the network does"},
		{w.Internal.Addr().IsValid(), "the option To: the address says where to listen"},
		{w.ipv6, `the option IPv6: the network says so, as in "tcp6"`},
		{w.Count > 0, "the option Ports: one port is bound"},
		{w.SamePort, "the option SamePort: the port is bound already"},
		{w.Once, "the option Once: it is kept alive until it is closed"},
		{w.Background, "the option Background: it always works in the background"},
	} {
		if wrong.given {
			return spec{}, invalid("listening with %s", wrong.why)
		}
	}
	w.Background, w.noDefault = true, true
	return w, nil
}

// longestPinhole is what UPnP grants at most, which refuses to open one for ever.
const longestPinhole = 24 * time.Hour

// families says by what a socket is to be reached: the network and the address
// that it is bound to leave a choice only where it is for both, and the peer that
// alone is admitted, if valid, makes it.
func (f *Forwarder) families(network string, bound, peer netip.Addr) (mapping, pinhole bool) {
	is4 := bound.Is4() || bound.IsUnspecified() && !strings.HasSuffix(network, "6")
	is6 := bound.Is6()
	switch {
	case peer.IsValid():
		return is4 && peer.Is4(), is6 && peer.Is6()
	case is4 && is6:
		return f.leads(ipv4), f.leads(ipv6)
	}
	return is4, is6
}

// leads reports whether the gateway of a family is worth asking where nobody
// insists on it. An IPv4 network may yet come; without an IPv6 one there is
// nothing to open and much to warn of.
func (f *Forwarder) leads(fam family) bool {
	named := f.config.Gateway.Addr()
	switch {
	case len(f.config.Backends) > 0: // for which family, they do not tell
		return fam == f.family()
	case named.IsLoopback(): // a test's: the other family's gateway would be a real one
		return fam == familyOf(named)
	case fam == ipv4:
		return true
	}
	k, err := f.locate(ipv6)
	return err == nil && !k.source.IsPrivate() && !k.source.IsLinkLocalUnicast()
}
