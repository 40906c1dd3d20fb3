package discover

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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

// Gateways returns all default routes: IPv4 before IPv6, and of each family the
// preferred one first. What Default and Default6 answer leads its family, and is
// listed even if it is no default route by the letter (VPNs often lay two routes
// of half the internet each over it). The others follow by routing table (on
// Linux main and default come before policy tables, which are listed too, since
// VPNs and multi-homed hosts keep their default route there; on macOS routes
// scoped to an interface come last) and by metric.
//
// Routes that refuse (blackhole, unreachable, prohibit) are left out. Without any
// default route the list is empty and the error nil.
func Gateways() ([]Gateway, error) {
	rows, err := defaultRoutes()
	if err != nil {
		return nil, err
	}
	var used []row
	for _, dst := range []netip.Addr{internet4, internet6} {
		g, err := Route(dst)
		if errors.Is(err, ErrNoRoute) {
			continue
		}
		if err != nil {
			return nil, err
		}
		used = append(used, row{Gateway: g, is6: dst.Is6()})
	}
	return arrange(rows, used), nil
}

// Through returns the preferred default route of a family through an interface. It fails
// with ErrNoRoute if there is none.
func Through(iface string, is6 bool) (Gateway, error) {
	all, err := Gateways()
	if err != nil {
		return Gateway{}, err
	}
	for _, g := range all {
		if g.Interface == iface && g.Local.IsValid() && g.Local.Is6() == is6 {
			return g, nil
		}
	}
	return Gateway{}, fmt.Errorf("%w out through interface %q", ErrNoRoute, iface)
}

// A row is an entry of the list that Gateways sorts.
type row struct {
	Gateway
	is6  bool // the addresses may all be zero, so they cannot tell
	rank int  // goes before the metric: lower is preferred
}

// arrange sorts rows as documented at Gateways and puts the used ones, at most
// one of each family, before the rest of their family.
func arrange(rows, used []row) []Gateway {
	list := slices.Clone(rows)
	for _, u := range used {
		u.rank = -1
		same := func(r row) bool {
			return r.is6 == u.is6 && r.rank >= 0 && r.Addr == u.Addr && r.Index == u.Index
		}
		// One next hop can stand in several tables. The lookup's answer says which
		// source is in use; the first entry that agrees with it is the same way.
		if i := slices.IndexFunc(list, func(r row) bool { return same(r) && r.Metric == u.Metric }); i >= 0 {
			list = slices.Delete(list, i, i+1)
		} else if i := slices.IndexFunc(list, same); i >= 0 {
			list = slices.Delete(list, i, i+1)
		}
		list = append(list, u)
	}
	slices.SortStableFunc(list, func(a, b row) int {
		return cmp.Or(
			cmp.Compare(family(a.is6), family(b.is6)),
			cmp.Compare(a.rank, b.rank),
			cmp.Compare(a.Metric, b.Metric),
		)
	})
	out := make([]Gateway, 0, len(list))
	for _, r := range list {
		if !slices.Contains(out, r.Gateway) {
			out = append(out, r.Gateway)
		}
	}
	return out
}

func family(is6 bool) int {
	if is6 {
		return 6
	}
	return 4
}
