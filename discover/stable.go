package discover

import "net/netip"

// Stable returns the address at which a server on this host should be reachable through g,
// a route to the IPv6 internet. If the kernel creates temporary addresses (RFC 8981), g.Local
// is usually one of them, and such an address is soon deprecated. Stable returns g.Local if
// the interface has no suitable permanent address, or if the system does not report which
// addresses are temporary: this package gets that information on Linux only.
func Stable(g Gateway) netip.Addr {
	if !g.Local.Is6() || g.Local.IsLinkLocalUnicast() {
		return g.Local
	}
	if addr, ok := stable(g); ok {
		return addr
	}
	return g.Local
}
