package discover

import "net/netip"

// Stable returns the address at which a server on this host should be reached through g, a
// route to the IPv6 internet. If the kernel creates temporary addresses (RFC 8981), it
// sends from one of them, but such an address is soon deprecated. Stable returns g.Local if
// this host has no other address, or if the system does not report which addresses are
// temporary: this package gets that information on Linux only.
func Stable(g Gateway) netip.Addr {
	if !g.Local.Is6() || g.Local.IsLinkLocalUnicast() {
		return g.Local
	}
	if addr, ok := stable(g); ok {
		return addr
	}
	return g.Local
}
