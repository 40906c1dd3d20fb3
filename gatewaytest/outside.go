package gatewaytest

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
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
// If there is no mapping or pinhole, a TCP connection fails with an error that wraps
// syscall.ECONNREFUSED. A UDP connection succeeds, but its datagrams are lost, as on a
// real network. For TCP to an IPv4 address other than the gateway's, the error wraps
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
	last := network[len(network)-1]
	if last == '4' && !addr.Is4() || last == '6' && !addr.Is6() {
		return &net.AddrError{Err: "no suitable address", Addr: addr.String()}
	}
	return nil
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
	case to.Addr().Is6() && from.Addr().Is6() && g.upnp.config.Firewall.Disabled:
		return Entry{Internal: to}, nil
	case to.Addr().Is6() && from.Addr().Is6(): // IPv6 entries have their own address in the table
	case to.Addr().Is6() || from.Addr().Is6() || external.IsUnspecified():
		return Entry{}, os.NewSyscallError("connect", errno.EHOSTUNREACH)
	case to.Addr() == external:
		to = netip.AddrPortFrom(netip.Addr{}, to.Port())
	case g.upnp.config.Description.TwoSessions && to.Addr() == g.sessionAddr(secondSession):
		to = netip.AddrPortFrom(secondSession, to.Port())
	default:
		return Entry{}, os.NewSyscallError("connect", errno.EHOSTUNREACH)
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
	addr := cmp.Or(at.Addr().Unmap(), choose(v6, defaultOutside6, defaultOutside))
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
	closeAll(all)
}

// outsideError returns an error of the type that package net returns.
func outsideError(op, network string, addr net.Addr, err error) error {
	return &net.OpError{Op: op, Net: network, Addr: addr, Err: err}
}

// dialTCP connects an outside host to the internal endpoint of a mapping.
func (g *Gateway) dialTCP(ctx context.Context, from netip.AddrPort, network string, to netip.AddrPort) (net.Conn, error) {
	remote := net.TCPAddrFromAddrPort(to)
	g.mu.Lock()
	from, err := g.outsideAddr(from, to.Addr().Is6())
	g.mu.Unlock()
	if err != nil {
		return nil, outsideError("dial", network, remote, err)
	}
	c, err := g.connect(ctx, from, to, 0)
	if err != nil {
		g.record.count(func(s *Stats) { s.Refused++ })
		return nil, outsideError("dial", network, remote, err)
	}
	g.record.count(func(s *Stats) { s.Connections++ })
	return c, nil
}

// connect finds the entry for the external endpoint and connects to its internal
// endpoint, from the given local port, or from any port if it is 0.
func (g *Gateway) connect(ctx context.Context, from, to netip.AddrPort, localPort uint16) (net.Conn, error) {
	entry, err := g.findEntry(backends.TCP, to, from)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer g.onClose(cancel)()
	d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(localPort)}}
	inner, err := d.DialContext(ctx, "tcp", entry.Internal.String())
	switch {
	case err == nil:
	case errno.IsRefused(err):
		return nil, os.NewSyscallError("connect", errno.ECONNREFUSED)
	case g.isClosed():
		return nil, net.ErrClosed
	default:
		return nil, err
	}
	c := &tcpConn{
		gateway: g, inner: inner.(*net.TCPConn),
		local: net.TCPAddrFromAddrPort(from), remote: net.TCPAddrFromAddrPort(to),
	}
	if err := g.track(c); err != nil {
		_ = inner.Close()
		return nil, err
	}
	return c, nil
}

// tcpConn is the end of a connection at an outside host: a real connection to the
// internal endpoint, with virtual addresses.
type tcpConn struct {
	gateway       *Gateway
	inner         *net.TCPConn
	local, remote net.Addr
	closed        atomic.Bool
}

// Read reads from the internal endpoint and counts the bytes.
func (c *tcpConn) Read(b []byte) (int, error) {
	n, err := c.inner.Read(b)
	c.gateway.record.count(func(s *Stats) { s.BytesOut += int64(n) })
	return n, err
}

// Write writes to the internal endpoint and counts the bytes.
func (c *tcpConn) Write(b []byte) (int, error) {
	n, err := c.inner.Write(b)
	c.gateway.record.count(func(s *Stats) { s.BytesIn += int64(n) })
	return n, err
}

// Close closes both directions. Another call fails with net.ErrClosed.
func (c *tcpConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.gateway.untrack(c)
	return c.inner.Close()
}

// CloseWrite closes the writing side of the connection.
func (c *tcpConn) CloseWrite() error { return c.inner.CloseWrite() }

// CloseRead closes the reading side of the connection.
func (c *tcpConn) CloseRead() error { return c.inner.CloseRead() }

func (c *tcpConn) LocalAddr() net.Addr                { return c.local }
func (c *tcpConn) RemoteAddr() net.Addr               { return c.remote }
func (c *tcpConn) SetDeadline(t time.Time) error      { return c.inner.SetDeadline(t) }
func (c *tcpConn) SetReadDeadline(t time.Time) error  { return c.inner.SetReadDeadline(t) }
func (c *tcpConn) SetWriteDeadline(t time.Time) error { return c.inner.SetWriteDeadline(t) }

// maxPeers is the maximum number of internal endpoints that an outside socket remembers.
const maxPeers = 1024

// openOutsideUDP opens the socket of an outside host.
func (g *Gateway) openOutsideUDP(network string, at netip.AddrPort, v6 bool) (*packetConn, error) {
	inner, err := net.ListenUDP(choose(v6, "udp6", "udp4"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(g.insideAddr(v6), 0)))
	if err != nil {
		return nil, outsideError("listen", network, nil, err)
	}
	c := &packetConn{gateway: g, inner: inner, peers: make(map[netip.AddrPort]netip.AddrPort)}
	if err := g.bind(c, at, v6); err != nil {
		_ = inner.Close()
		return nil, outsideError("listen", network, net.UDPAddrFromAddrPort(at), err)
	}
	return c, nil
}

// bind assigns the virtual address to the socket.
func (g *Gateway) bind(c *packetConn, at netip.AddrPort, v6 bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return net.ErrClosed
	}
	at, err := g.outsideAddr(at, v6)
	if err != nil {
		return err
	}
	c.local = at
	g.outsideUDP[at] = c
	g.outsideConns[c] = struct{}{}
	return nil
}

// insideAddr returns the local address from which the sockets of outside hosts reach
// internal endpoints. If the gateway listens on loopback, it is a loopback address, so
// that no host firewall asks for permission.
func (g *Gateway) insideAddr(v6 bool) netip.Addr {
	listen := g.Addr().Addr()
	if listen.IsLoopback() {
		return choose(v6, netip.IPv6Loopback(), listen)
	}
	return choose(v6, netip.IPv6Unspecified(), netip.IPv4Unspecified())
}

// packetConn is the socket of an outside host: a real socket that exchanges datagrams
// with internal endpoints, with virtual addresses.
type packetConn struct {
	gateway *Gateway
	inner   *net.UDPConn
	local   netip.AddrPort
	closed  atomic.Bool

	mu    sync.Mutex
	peers map[netip.AddrPort]netip.AddrPort // maps internal endpoints to the external endpoints last written to
}

// WriteTo sends a datagram. If no mapping admits the datagram, it is lost without an
// error.
func (c *packetConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok || to == nil {
		return 0, outsideError("write", "udp", addr, syscall.EINVAL)
	}
	return c.write(b, netip.AddrPortFrom(to.AddrPort().Addr().Unmap().WithZone(""), to.AddrPort().Port()))
}

// write sends a datagram to an external endpoint and counts it.
func (c *packetConn) write(b []byte, to netip.AddrPort) (int, error) {
	if c.closed.Load() {
		return 0, outsideError("write", "udp", net.UDPAddrFromAddrPort(to), net.ErrClosed)
	}
	entry, err := c.gateway.findEntry(backends.UDP, to, c.local)
	if err == nil {
		err = c.send(b, to, entry.Internal)
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, err
	}
	c.gateway.record.count(func(s *Stats) {
		if err != nil {
			s.Lost++
			return
		}
		s.Datagrams++
		s.BytesIn += int64(len(b))
	})
	return len(b), nil
}

// send forwards a datagram, and records the external endpoint from which replies to it
// appear to come.
func (c *packetConn) send(b []byte, external, internal netip.AddrPort) error {
	c.mu.Lock()
	if len(c.peers) >= maxPeers {
		clear(c.peers)
	}
	c.peers[internal] = external
	c.mu.Unlock()
	_, err := c.inner.WriteToUDPAddrPort(b, internal)
	return err
}

// ReadFrom receives a datagram. Its source is the external endpoint to which this socket
// wrote.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.read(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// read receives a datagram and returns the external endpoint from which it appears to
// come. It discards datagrams from other endpoints.
func (c *packetConn) read(b []byte) (int, netip.AddrPort, error) {
	for {
		n, from, err := c.inner.ReadFromUDPAddrPort(b)
		if errno.IsReset(err) { // an earlier datagram was rejected
			continue
		}
		if err != nil {
			return n, netip.AddrPort{}, err
		}
		c.mu.Lock()
		external, ok := c.peers[netip.AddrPortFrom(from.Addr().Unmap(), from.Port())]
		c.mu.Unlock()
		if !ok {
			continue
		}
		c.gateway.record.count(func(s *Stats) { s.BytesOut += int64(n) })
		return n, external, nil
	}
}

// Close releases the virtual address. Another call fails with net.ErrClosed.
func (c *packetConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	g := c.gateway
	g.mu.Lock()
	delete(g.outsideConns, c)
	delete(g.outsideUDP, c.local)
	g.mu.Unlock()
	return c.inner.Close()
}

func (c *packetConn) LocalAddr() net.Addr                { return net.UDPAddrFromAddrPort(c.local) }
func (c *packetConn) SetDeadline(t time.Time) error      { return c.inner.SetDeadline(t) }
func (c *packetConn) SetReadDeadline(t time.Time) error  { return c.inner.SetReadDeadline(t) }
func (c *packetConn) SetWriteDeadline(t time.Time) error { return c.inner.SetWriteDeadline(t) }

// dialUDP opens the socket of an outside host for one external endpoint.
func (g *Gateway) dialUDP(from netip.AddrPort, network string, to netip.AddrPort) (net.Conn, error) {
	c, err := g.openOutsideUDP(network, from, to.Addr().Is6())
	if err != nil {
		return nil, err
	}
	return &udpConn{packetConn: c, remote: to}, nil
}

// udpConn is a packetConn with one peer.
type udpConn struct {
	*packetConn
	remote netip.AddrPort
}

// Write sends a datagram. If no mapping admits the datagram, it is lost without an
// error.
func (c *udpConn) Write(b []byte) (int, error) { return c.write(b, c.remote) }

// Read receives a datagram from the peer. It discards datagrams from other endpoints.
func (c *udpConn) Read(b []byte) (int, error) {
	for {
		n, from, err := c.read(b)
		if err != nil || from == c.remote {
			return n, err
		}
	}
}

func (c *udpConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.remote) }
