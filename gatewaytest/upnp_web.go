package gatewaytest

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/netip"
	"time"
)

const (
	// maxConns bounds the HTTP connections at a time; more are closed at once.
	maxConns = 256
	// maxExchanges bounds the requests of a connection.
	maxExchanges = 256
	// webPatience bounds how long a client may take to ask, or to read.
	webPatience = 30 * time.Second
	// lingering bounds the wait for a client to have read an answer.
	lingering = 2 * time.Second
)

// web is one of the HTTP servers, of IPv4 or IPv6.
type web struct {
	network string
	addr    netip.AddrPort   // settled by the first open
	ln      *net.TCPListener // nil while down
}

// base is the start of the server's URLs. Callers hold the gateway's lock.
func (w *web) base() string {
	addr := w.addr
	if addr.Addr().IsUnspecified() {
		addr = netip.AddrPortFrom(loopback, addr.Port())
	}
	return "http://" + netip.AddrPortFrom(addr.Addr().WithZone(""), addr.Port()).String()
}

// accept takes connections until the listener is closed.
func (s *upnpServer) accept(w *web, ln *net.TCPListener) {
	for {
		c, err := ln.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			if !s.g.pause(time.Millisecond) {
				return
			}
			continue
		}
		if !s.keep(w, ln, c) {
			_ = c.Close()
			continue
		}
		s.g.spawn(func() { s.converse(w, c) })
	}
}

// keep has hangUp close the connection, or reports that there are too many, or
// that its listener is no longer the server's: what hangUp is then to close may
// be closed already.
func (s *upnpServer) keep(w *web, ln *net.TCPListener, c *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns || !s.listens(w, ln) {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *upnpServer) listens(w *web, ln *net.TCPListener) bool {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return w.ln == ln
}

// hangUp closes all connections.
func (s *upnpServer) hangUp() {
	var all []*net.TCPConn
	s.mu.Lock()
	for c := range s.conns {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// converse answers the request of a connection, or where it stays open the
// requests.
func (s *upnpServer) converse(w *web, c *net.TCPConn) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	in := bufio.NewReaderSize(c, maxHeader)
	for range maxExchanges {
		_ = c.SetDeadline(time.Now().Add(webPatience))
		r, err := readRequest(in)
		if len(r.raw) == 0 {
			return
		}
		r.err = err
		r.source = remoteAddrPort(c)
		s.g.mu.Lock()
		r.base = w.base()
		s.g.mu.Unlock()
		if !s.exchange(c, r) {
			return
		}
		if !s.config.Wire.LeaveOpen || err != nil {
			linger(c)
			return
		}
	}
}

// exchange answers a request, and reports whether the connection is to end in
// order.
func (s *upnpServer) exchange(c *net.TCPConn, r httpRequest) bool {
	q := s.identify(&r)
	var after func()
	replies, fault := s.g.answerBy(q, func(refuse int) [][]byte {
		var b []byte
		b, after = s.respond(&r, refuse)
		return datagrams(b)
	})
	s.g.record.add(q, len(replies) == 0)
	if !s.g.await(fault) {
		return false
	}
	if after != nil {
		_ = c.SetLinger(0) // resets rather than ends
		after()
		return false
	}
	if len(replies) == 0 {
		return false
	}
	s.g.record.count(func(s *Stats) { s.Replies++ })
	_ = c.SetDeadline(time.Now().Add(webPatience))
	_, err := c.Write(bytes.Join(replies, nil))
	return err == nil
}

// linger lets the client read what was written: to close with something unread
// on this side would reset the connection.
func linger(c *net.TCPConn) {
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(lingering))
	b := make([]byte, 1024)
	for range 1024 {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

func remoteAddrPort(c *net.TCPConn) netip.AddrPort {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
}
