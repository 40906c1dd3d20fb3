package backends

import (
	"fmt"
	"net/netip"
)

// Scope is the reach of an external address: public, private or shared.
type Scope uint8

// The scopes.
const (
	// ScopeUnknown means that the external address is not known: nothing is mapped, or the
	// gateway does not report the address.
	ScopeUnknown Scope = iota
	// ScopePublic is the scope of an address that is reachable from the internet,
	// as far as the address shows.
	ScopePublic
	// ScopePrivate is the scope of a private address (RFC 1918, RFC 4193) or of a
	// special-purpose address that is not used between hosts. The gateway is behind
	// another NAT.
	ScopePrivate
	// ScopeShared is the scope of 100.64.0.0/10 (RFC 6598). The gateway is behind
	// the NAT of the provider.
	ScopeShared
)

var (
	sharedSpace = netip.MustParsePrefix("100.64.0.0/10")
	reserved    = []netip.Prefix{ // blocks of the IANA special-purpose registries for which netip has no method
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("192.0.2.0/24"),
		netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("198.51.100.0/24"),
		netip.MustParsePrefix("203.0.113.0/24"),
		netip.MustParsePrefix("240.0.0.0/4"),
		netip.MustParsePrefix("2001:db8::/32"),
	}
)

// ScopeOf returns the scope of an address.
func ScopeOf(a netip.Addr) Scope {
	a = a.Unmap()
	switch {
	case !a.IsValid() || a.IsUnspecified():
		return ScopeUnknown
	case sharedSpace.Contains(a):
		return ScopeShared
	case !a.IsGlobalUnicast() || a.IsPrivate():
		return ScopePrivate
	}
	for _, p := range reserved {
		if p.Contains(a) {
			return ScopePrivate
		}
	}
	return ScopePublic
}

// HostAddr validates an address that a gateway reported as its own. It returns an
// IPv4-mapped IPv6 address as IPv4. It returns the zero Addr for an address with a
// zone, which a gateway can set to any text, and for an address that no host has:
// unspecified, loopback, multicast, broadcast.
func HostAddr(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == broadcast {
		return netip.Addr{}
	}
	return a
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// String returns "public", "private", "shared" or "unknown".
func (s Scope) String() string {
	switch s {
	case ScopeUnknown:
		return "unknown"
	case ScopePublic:
		return "public"
	case ScopePrivate:
		return "private"
	case ScopeShared:
		return "shared"
	}
	return fmt.Sprintf("scope %d", uint8(s))
}

// MarshalText returns the text of [Scope.String].
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
