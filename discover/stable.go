package discover

import "net/netip"

// Stable returns the address of this host on a way to the IPv6 internet that a
// server should be reached at: the kernel sends from a temporary one where it
// makes such (RFC 8981), which soon goes out of use. Where the system does not
// tell which are temporary (all but Linux, here), or has no other, it is
// g.Local.
func Stable(g Gateway) netip.Addr {
	if !g.Local.Is6() || g.Local.IsLinkLocalUnicast() {
		return g.Local
	}
	if addr, ok := stable(g); ok {
		return addr
	}
	return g.Local
}
