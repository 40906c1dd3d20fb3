package gatewaytest

import "net/netip"

// private4 is where hosts on the internet cannot connect to: private, shared
// and link-local addresses, and those of protocol assignments (RFC 6890).
var private4 = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("192.0.0.0/24"),
}

// private reports whether hosts on the internet cannot reach the address.
func private(addr netip.Addr) bool {
	for _, p := range private4 {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
