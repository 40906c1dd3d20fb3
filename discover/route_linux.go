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

// lookup returns the kernel's route to dst.
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
	r, err := queryRoute(c, dst, index, 0)
	if err != nil {
		return Gateway{}, lookupError(dst, err)
	}
	if r.refusal != "" {
		return Gateway{}, noRoute(dst, errors.New(r.refusal))
	}
	if !r.is6() && r.metric == 0 {
		// An IPv4 reply omits the metric, but the entry of the table has it. Kernels
		// before 4.13 ignore the flag and send the same reply again.
		if entry, err := queryRoute(c, dst, index, rtmFibMatch); err == nil {
			r.metric = entry.metric
		}
	}
	return r.gateway(interfaceName(c, r.index), r.src), nil
}

// interfaceName returns the name of an interface, or an empty string if it no longer exists.
// The kernel looks it up. Package net instead reads the list of all interfaces, which are
// many on a host with containers.
func interfaceName(c *netlink.Conn, index int) string {
	if name, err := requestInterfaceName(c, index); err == nil {
		return name
	}
	name, _ := interfaceAt(index) // some systems support ioctl only for sockets of other kinds
	return name
}

// requestInterfaceName calls SIOCGIFNAME, see netdevice(7).
func requestInterfaceName(c *netlink.Conn, index int) (string, error) {
	request, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	request.SetUint32(uint32(index))
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) { ioctlErr = unix.IoctlIfreq(int(fd), unix.SIOCGIFNAME, request) }); err != nil {
		return "", err
	}
	return request.Name(), ioctlErr
}

// queryRoute sends one lookup request to the kernel and returns the route in the reply.
func queryRoute(c *netlink.Conn, dst netip.Addr, index int, flags uint32) (route, error) {
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

// lookupError wraps ErrNoRoute if the kernel's error means that there is no route. The
// request is always well formed, so EINVAL and EACCES do not concern the request: they are
// the errors of blackhole and prohibit routes.
func lookupError(dst netip.Addr, err error) error {
	for _, e := range []struct {
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
		{unix.EAFNOSUPPORT, "the kernel does not support the address family"},
		{unix.EOPNOTSUPP, "the kernel does not support the address family"},
	} {
		if !errors.Is(err, e.errno) {
			continue
		}
		if e.reason == "" {
			return noRoute(dst, e.errno)
		}
		return noRoute(dst, fmt.Errorf("%s: %w", e.reason, e.errno))
	}
	return fmt.Errorf("discover: route to %s: %w", destination(dst), err)
}

// defaultRoutes returns the default routes of every table. It omits a route if the kernel
// reports only the ID of its next hop object (net.ipv4.nexthop_compat_mode=0): such a route
// has no interface. Lookups still return it.
func defaultRoutes() ([]defaultRoute, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("discover: rtnetlink: %w", err)
	}
	defer func() { _ = c.Close() }()

	var out []defaultRoute
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
				local = sourceFor(c, dst, r, addrs)
			}
			out = append(out, defaultRoute{Gateway: r.gateway(name, local), is6: r.is6(), rank: r.rank})
		}
	}
	return out, nil
}

// dump returns all routes of an address family.
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
			continue // a kernel without IPv6 returns the routes of other families
		}
		routes, err := parseRtmsg(m.Data, binary.NativeEndian)
		if err != nil {
			return nil, err
		}
		out = append(out, routes...)
	}
	return out, nil
}

// sourceFor returns the address from which the kernel would send if it used r to reach
// dst. It gets the address from a lookup that is bound to the interface. If that lookup
// returns another next hop, sourceFor guesses.
func sourceFor(c *netlink.Conn, dst netip.Addr, r route, addrs []netip.Prefix) netip.Addr {
	found, err := queryRoute(c, dst, r.index, 0)
	if err == nil && found.refusal == "" && found.index == r.index && found.via == r.via &&
		found.src.IsValid() && !found.src.IsLoopback() {
		return found.src
	}
	return pickLocal(addrs, r.via, r.is6())
}
