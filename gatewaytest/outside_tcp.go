package gatewaytest

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// dialTCP connects an outside host to the internal endpoint of a mapping.
func (g *Gateway) dialTCP(ctx context.Context, from netip.AddrPort, network string, to netip.AddrPort) (net.Conn, error) {
	remote := net.TCPAddrFromAddrPort(to)
	g.mu.Lock()
	from, err := g.outsideAddr(from, to.Addr().Is6())
	g.mu.Unlock()
	if err != nil {
		return nil, outsideError("dial", network, remote, err)
	}
	c, err := g.connect(ctx, from, to)
	if err != nil {
		g.record.count(func(s *Stats) { s.Refused++ })
		return nil, outsideError("dial", network, remote, err)
	}
	g.record.count(func(s *Stats) { s.Connections++ })
	return c, nil
}

// connect finds the entry for the external endpoint and connects to its internal
// endpoint.
func (g *Gateway) connect(ctx context.Context, from, to netip.AddrPort) (net.Conn, error) {
	entry, err := g.findEntry(backends.TCP, to, from)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer g.onClose(cancel)()
	var d net.Dialer
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
