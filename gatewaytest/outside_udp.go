package gatewaytest

import (
	"errors"
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

// maxPeers is the maximum number of internal endpoints that an outside socket remembers.
const maxPeers = 1024

// openOutsideUDP opens the socket of an outside host.
func (g *Gateway) openOutsideUDP(network string, at netip.AddrPort, v6 bool) (*packetConn, error) {
	family := "udp4"
	if v6 {
		family = "udp6"
	}
	inner, err := net.ListenUDP(family, net.UDPAddrFromAddrPort(netip.AddrPortFrom(g.insideAddr(v6), 0)))
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
	switch {
	case v6 && listen.IsLoopback():
		return netip.IPv6Loopback()
	case v6:
		return netip.IPv6Unspecified()
	case listen.IsLoopback():
		return listen
	}
	return netip.IPv4Unspecified()
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
