package reach

import (
	"net"
	"net/netip"

	"github.com/natforward/goforward/backends"
)

// siteBits is the length of the prefix that the hosts of a site have in common, at most
// (RFC 6177). Addresses that share it may belong to one home.
const siteBits = 48

// IsFromInternet reports whether a connection to the internal port from this address came from
// the internet, as far as the address shows: it has the family of the internal address, is
// public, and belongs neither to this host, its networks and its IPv6 site, nor to the gateway.
func (t Target) IsFromInternet(from netip.Addr) bool {
	from = from.Unmap()
	if from.Is4() != t.Internal.Addr().Unmap().Is4() {
		return false
	}
	if backends.ScopeOf(from) != backends.ScopePublic || from == t.External.Addr() || from == t.Gateway || from == t.Internal.Addr() {
		return false
	}
	if from.Is6() && t.Internal.Addr().Is6() {
		site := netip.PrefixFrom(t.Internal.Addr().WithZone(""), siteBits)
		if site.Masked().Contains(from) {
			return false
		}
	}
	return !isOnLink(from)
}

// isOnLink reports whether an address is on a network of this host, or of this host itself.
func isOnLink(addr netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range all {
		n, ok := a.(*net.IPNet)
		if ok && n.Contains(addr.AsSlice()) {
			return true
		}
	}
	return false
}
