package discover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// lookup asks the kernel for its way to dst.
func lookup(dst netip.Addr) (Gateway, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return Gateway{}, fmt.Errorf("discover: rtnetlink: %w", err)
	}
	defer func() { _ = c.Close() }()

	index := 0
	if dst.Zone() != "" {
		ifi, err := net.InterfaceByName(dst.Zone())
		if err != nil {
			return Gateway{}, noRoute(dst, err)
		}
		index = ifi.Index
	}
	r, err := ask(c, dst, index, 0)
	if err != nil {
		return Gateway{}, lookupError(dst, err)
	}
	if r.refusal != "" {
		return Gateway{}, noRoute(dst, errors.New(r.refusal))
	}
	if !r.is6() && r.metric == 0 {
		// An IPv4 answer leaves the metric out. The table's entry has it; kernels
		// before 4.13 ignore the flag and repeat the answer.
		if entry, err := ask(c, dst, index, rtmFibMatch); err == nil {
			r.metric = entry.metric
		}
	}
	name, _ := interfaceAt(r.index)
	return r.gateway(name, r.src), nil
}

// ask puts one lookup to the kernel.
func ask(c *netlink.Conn, dst netip.Addr, index int, flags uint32) (route, error) {
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request},
		Data:   appendRouteRequest(nil, binary.NativeEndian, dst, index, flags),
	})
	if err != nil {
		return route{}, err
	}
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWROUTE {
			continue
		}
		routes, err := parseRtmsg(m.Data, binary.NativeEndian)
		if err != nil {
			return route{}, err
		}
		if len(routes) > 0 {
			return routes[0], nil
		}
	}
	return route{}, unix.ENETUNREACH
}

// lookupError tells the kernel's ways to say "no route" from real failures. The
// request is always well formed, so that EINVAL and EACCES speak of the route:
// they are what blackhole and prohibit routes return.
func lookupError(dst netip.Addr, err error) error {
	for _, no := range []struct {
		errno  unix.Errno
		reason string
	}{
		{unix.ENETUNREACH, ""},
		{unix.EHOSTUNREACH, "unreachable route"},
		{unix.EINVAL, "blackhole route"},
		{unix.EACCES, "prohibited route"},
		{unix.ESRCH, ""},
		{unix.EADDRNOTAVAIL, ""},
		{unix.ENODEV, ""},
		{unix.EAFNOSUPPORT, "the kernel lacks the family"},
		{unix.EOPNOTSUPP, "the kernel lacks the family"},
	} {
		if !errors.Is(err, no.errno) {
			continue
		}
		if no.reason == "" {
			return noRoute(dst, no.errno)
		}
		return noRoute(dst, fmt.Errorf("%s: %w", no.reason, no.errno))
	}
	return fmt.Errorf("discover: route to %v: %w", dst, err)
}

// defaultRoutes dumps the default routes of every table. A route whose next hops
// are only known by id (net.ipv4.nexthop_compat_mode=0) has no interface and is
// left out; lookups still answer it.
func defaultRoutes() ([]row, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("discover: rtnetlink: %w", err)
	}
	defer func() { _ = c.Close() }()

	var rows []row
	for _, dst := range []netip.Addr{internet4, internet6} {
		routes, err := dump(c, dst.Is6())
		if err != nil {
			return nil, fmt.Errorf("discover: list routes: %w", err)
		}
		for _, r := range routes {
			if !r.isDefault() || r.index == 0 {
				continue
			}
			name, addrs := interfaceAt(r.index)
			local := r.src
			if !local.IsValid() {
				local = sourceOn(c, dst, r, addrs)
			}
			rows = append(rows, row{Gateway: r.gateway(name, local), is6: r.is6(), rank: r.rank})
		}
	}
	return rows, nil
}

// dump reads all routes of a family.
func dump(c *netlink.Conn, is6 bool) ([]route, error) {
	body := make([]byte, sizeofRtmsg)
	body[0] = nlInet
	if is6 {
		body[0] = nlInet6
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request | netlink.Dump},
		Data:   body,
	})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // a kernel without IPv6
	}
	if err != nil {
		return nil, err
	}
	var out []route
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) == 0 || m.Data[0] != body[0] {
			continue // a kernel without IPv6 answers for other families
		}
		routes, err := parseRtmsg(m.Data, binary.NativeEndian)
		if err != nil {
			return nil, err
		}
		out = append(out, routes...)
	}
	return out, nil
}

// sourceOn returns the address that the kernel would send from if it used r to
// get to dst. A lookup bound to the interface tells that, as long as it takes the
// same next hop.
func sourceOn(c *netlink.Conn, dst netip.Addr, r route, addrs []netip.Prefix) netip.Addr {
	a, err := ask(c, dst, r.index, 0)
	if err == nil && a.refusal == "" && a.index == r.index && a.via == r.via && a.src.IsValid() && !a.src.IsLoopback() {
		return a.src
	}
	return pickLocal(addrs, r.via, r.is6())
}
