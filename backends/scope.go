package backends

import (
	"fmt"
	"net/netip"
)

// Scope is how far an external address reaches.
type Scope uint8

// The scopes.
const (
	// ScopeUnknown: the gateway does not tell its external address.
	ScopeUnknown Scope = iota
	// ScopePublic: reachable from the internet, as far as the address tells.
	ScopePublic
	// ScopePrivate: a private address (RFC 1918, RFC 4193) or one that is not for
	// use between hosts: another NAT stands before the gateway.
	ScopePrivate
	// ScopeShared: an address of 100.64.0.0/10 (RFC 6598): the provider's own NAT
	// stands before the gateway.
	ScopeShared
)

var (
	sharedSpace = netip.MustParsePrefix("100.64.0.0/10")
	reserved    = []netip.Prefix{ // blocks of the IANA special-purpose registries that netip has no predicate for
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

// HostAddr returns an address as a gateway may tell it for its own: IPv4 in its
// own form and without a zone, which is the gateway's and can be any text. It is
// the zero Addr where no host has it: unspecified, loopback, multicast, broadcast.
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

// MarshalText writes the scope as [Scope.String] does.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
