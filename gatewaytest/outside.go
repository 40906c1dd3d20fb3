package gatewaytest

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// dialTimeout is the maximum time for a connection to an internal endpoint, if the
// caller's context has no earlier deadline.
const dialTimeout = 10 * time.Second

// Dial connects as a host on the internet does, from a virtual address. The target is an
// external endpoint such as "45.45.45.1:8080", or the IPv6 address of a LAN host behind
// the firewall. The network is "tcp" or "udp", optionally followed by 4 or 6. The
// address is an IP address and a port.
//
// If there is no mapping or pinhole, a TCP connection fails with an error that is
// syscall.ECONNREFUSED. A UDP connection succeeds, but its datagrams are lost, as on a
// real network. For TCP to an IPv4 address other than the gateway's, the error is
// syscall.EHOSTUNREACH. A TCP connection has the methods CloseWrite and CloseRead.
func (g *Gateway) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return g.DialFrom(ctx, netip.AddrPort{}, network, address)
}

// DialFrom is like Dial, but connects from a given outside host. Use it for entries with
// Filters. The gateway chooses the address if it is the zero Addr, and the port if it is
// 0.
func (g *Gateway) DialFrom(ctx context.Context, from netip.AddrPort, network, address string) (net.Conn, error) {
	p, err := parseNetwork(network)
	if err != nil {
		return nil, outsideError("dial", network, nil, err)
	}
	to, err := parseEndpoint(address)
	if err != nil {
		return nil, outsideError("dial", network, nil, err)
	}
	if err := checkFamily(network, to.Addr()); err != nil {
		return nil, outsideError("dial", network, nil, err)
	}
	if p == backends.UDP {
		return g.dialUDP(from, network, to)
	}
	return g.dialTCP(ctx, from, network, to)
}

// ListenPacket opens the socket of an outside host on a virtual address, such as
// "45.45.45.2:0". The gateway chooses the host if it is empty, and the port if it is 0.
// A datagram that is written to an external endpoint is forwarded to the internal
// endpoint if there is a mapping, and is lost otherwise. Replies come from the external
// endpoint.
//
// The network is "udp", "udp4" or "udp6". IPv6 sockets reach only IPv6 hosts, and IPv4
// sockets reach only IPv4 hosts.
func (g *Gateway) ListenPacket(network, address string) (net.PacketConn, error) {
	p, err := parseNetwork(network)
	if err == nil && p != backends.UDP {
		err = net.UnknownNetworkError(network)
	}
	if err != nil {
		return nil, outsideError("listen", network, nil, err)
	}
	at, err := parseLocal(address)
	if err == nil && at.Addr().IsValid() {
		err = checkFamily(network, at.Addr())
	}
	if err != nil {
		return nil, outsideError("listen", network, nil, err)
	}
	return g.openOutsideUDP(network, at, network == "udp6" || at.Addr().Is6())
}

// parseNetwork returns the protocol of a network name.
func parseNetwork(network string) (backends.Protocol, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
		return backends.TCP, nil
	case "udp", "udp4", "udp6":
		return backends.UDP, nil
	}
	return 0, net.UnknownNetworkError(network)
}

// checkFamily returns an error if the address is not of the address family of the
// network.
func checkFamily(network string, addr netip.Addr) error {
	switch network[len(network)-1] {
	case '4':
		if addr.Is4() {
			return nil
		}
	case '6':
		if addr.Is6() {
			return nil
		}
	default:
		return nil
	}
	return &net.AddrError{Err: "no suitable address", Addr: addr.String()}
}

// parseEndpoint parses an address to send to.
func parseEndpoint(address string) (netip.AddrPort, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil || to.Port() == 0 {
		return netip.AddrPort{}, &net.AddrError{Err: "want an IP address and a port", Addr: address}
	}
	return netip.AddrPortFrom(to.Addr().Unmap().WithZone(""), to.Port()), nil
}

// parseLocal parses an address to listen on. The host and the port may be missing.
func parseLocal(address string) (netip.AddrPort, error) {
	if address == "" {
		return netip.AddrPort{}, nil
	}
	if address[0] == ':' {
		address = netip.IPv4Unspecified().String() + address
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "want an IP address and a port", Addr: address}
	}
	if at.Addr().IsUnspecified() {
		return netip.AddrPortFrom(netip.Addr{}, at.Port()), nil
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
}

// findEntry returns the entry for traffic to an external endpoint.
func (g *Gateway) findEntry(p backends.Protocol, to, from netip.AddrPort) (Entry, error) {
	external := g.External()
	switch {
	case to.Addr().Is4() != from.Addr().Is4():
		return Entry{}, os.NewSyscallError("connect", errno.EHOSTUNREACH)
	case to.Addr().Is6(): // IPv6 entries have their own address in the table
	case to.Addr() != external || external.IsUnspecified():
		return Entry{}, os.NewSyscallError("connect", errno.EHOSTUNREACH)
	default:
		to = netip.AddrPortFrom(netip.Addr{}, to.Port())
	}
	e, ok := g.table.lookup(p, to, from)
	if !ok || g.upnp.config.Rules.NoTraffic && e.Service == serviceUPnP {
		return Entry{}, os.NewSyscallError("connect", errno.ECONNREFUSED)
	}
	return e, nil
}

// outsideAddr completes the address of an outside host and checks it. The caller holds
// g.mu.
func (g *Gateway) outsideAddr(at netip.AddrPort, v6 bool) (netip.AddrPort, error) {
	addr := at.Addr().Unmap()
	switch {
	case addr.IsValid():
	case v6:
		addr = defaultOutside6
	default:
		addr = defaultOutside
	}
	if addr == g.external || addr.Is6() != v6 {
		return netip.AddrPort{}, os.NewSyscallError("bind", errno.EADDRNOTAVAIL)
	}
	if port := at.Port(); port != 0 {
		if g.outsideUDP[netip.AddrPortFrom(addr, port)] != nil {
			return netip.AddrPort{}, os.NewSyscallError("bind", errno.EADDRINUSE)
		}
		return netip.AddrPortFrom(addr, port), nil
	}
	for range numHighPorts {
		g.lastOutsidePort = (g.lastOutsidePort + 1) % numHighPorts
		at = netip.AddrPortFrom(addr, firstHighPort+g.lastOutsidePort)
		if g.outsideUDP[at] == nil {
			return at, nil
		}
	}
	return netip.AddrPort{}, os.NewSyscallError("bind", errno.EADDRINUSE)
}

// track records c, so that Close closes it. It fails with net.ErrClosed if the gateway
// is closed.
func (g *Gateway) track(c io.Closer) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return net.ErrClosed
	}
	g.outsideConns[c] = struct{}{}
	return nil
}

// untrack reverses track.
func (g *Gateway) untrack(c io.Closer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.outsideConns, c)
}

// disconnect closes the TCP connections from outside.
func (g *Gateway) disconnect() {
	var all []*tcpConn
	g.mu.Lock()
	for c := range g.outsideConns {
		if c, ok := c.(*tcpConn); ok {
			all = append(all, c)
		}
	}
	g.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// outsideError returns an error of the type that package net returns.
func outsideError(op, network string, addr net.Addr, err error) error {
	return &net.OpError{Op: op, Net: network, Addr: addr, Err: err}
}
