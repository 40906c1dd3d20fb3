package discover

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

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
