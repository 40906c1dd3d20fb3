package discover

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrNoRoute tells that the kernel has no way to the address asked about: none
// at all, or one that leads nowhere (blackhole, unreachable, prohibited) or back
// to this host. Test for it with errors.Is; the error's text has the reason.
var ErrNoRoute = errors.New("discover: no route")

// The addresses that stand for the internet when the kernel is asked for its way
// out: a.root-servers.net. No packet is ever sent there. They are not those of a
// public resolver, for which VPNs often keep a route of its own, and not the
// unspecified address, which some kernels refuse to look up.
var (
	internet4 = netip.AddrFrom4([4]byte{198, 41, 0, 4})
	internet6 = netip.AddrFrom16([16]byte{0x20, 0x01, 0x05, 0x03, 0xba, 0x3e, 13: 0x02, 15: 0x30})
)

// Gateway is a next hop that leads out, and the local side of the way to it.
type Gateway struct {
	// Addr is the next hop, with a zone if it is IPv6 link-local. It is the zero
	// Addr where the way has none, as in many tunnels.
	Addr netip.Addr

	// Local is the address of this host that the kernel sends from on this way,
	// with a zone if it is IPv6 link-local. Only in the list of Gateways can it be
	// the zero Addr, for an interface without an address of that family.
	Local netip.Addr

	// Interface and Index name the interface that leads there. Interface is empty
	// if it vanished meanwhile.
	Interface string
	Index     int

	// Metric is the route's rank as the system reports it, lower being preferred,
	// and 0 where it has none (macOS, FreeBSD, NetBSD). On Windows the interface's
	// metric is included.
	Metric int
}

// Default returns the way to the IPv4 internet, by the kernel's own lookup of a
// global address. It fails with ErrNoRoute where there is none.
func Default() (Gateway, error) { return Route(internet4) }

// Default6 is Default for IPv6.
func Default6() (Gateway, error) { return Route(internet6) }

// Route returns the way to dst, by the kernel's own lookup. A dst on a network of
// this host is its own next hop, so Addr is then the zero Addr. Route fails with
// ErrNoRoute where no way leads to dst and where dst is this host itself.
func Route(dst netip.Addr) (Gateway, error) {
	dst = dst.Unmap()
	switch {
	case !dst.IsValid() || dst.IsUnspecified():
		return Gateway{}, fmt.Errorf("discover: %v is no destination", dst)
	case dst.IsLoopback():
		return Gateway{}, noRoute(dst, errThisHost)
	}
	g, err := lookup(dst)
	switch {
	case err != nil:
		return Gateway{}, err
	case g.Local.WithZone("") == dst.WithZone(""):
		return Gateway{}, noRoute(dst, errThisHost)
	case !g.Local.IsValid() || g.Local.IsUnspecified() || g.Local.IsLoopback():
		// Linux falls back to ::1 on interfaces that have no address yet.
		return Gateway{}, noRoute(dst, fmt.Errorf("no address to send from on %s", g.Interface))
	}
	return g, nil
}

var errThisHost = errors.New("it is this host")

// noRoute wraps ErrNoRoute, and the reason so that a system's error number stays
// testable too.
func noRoute(dst netip.Addr, reason error) error {
	return fmt.Errorf("%w to %v: %w", ErrNoRoute, dst, reason)
}
