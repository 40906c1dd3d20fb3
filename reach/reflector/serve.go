package reflector

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Serve serves the connections of a listener, with TLS if config is not nil, until ctx ends. Then it
// lets running requests end, which takes ten seconds at most, closes the rest, and returns nil
// after all goroutines have ended. If the listener fails, it returns the error. It always closes the
// listener.
func (h *Handler) Serve(ctx context.Context, ln net.Listener, config *tls.Config) error {
	defer func() { _ = ln.Close() }() // a server with an unusable config does not do it
	ln = &boundedListener{Listener: ln, isProxy: func(a netip.Addr) bool { return contains(h.config.TrustProxy, a) }, by: map[netip.Prefix]int{}}
	var conns sync.WaitGroup
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	srv := &http.Server{
		Handler: h, Protocols: protocols, TLSConfig: config,
		ReadHeaderTimeout: h.transfer, ReadTimeout: 2 * h.transfer, WriteTimeout: 2*h.transfer + h.window, IdleTimeout: h.transfer,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,                                                    // the limits would not apply to it
		ErrorLog:                     slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // it would have whole addresses
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				conns.Add(1)
			case http.StateClosed: // by the goroutine of the connection, at its end
				conns.Done()
			default:
			}
		},
	}
	served := make(chan error, 1)
	go func() {
		if config != nil {
			served <- srv.ServeTLS(ln, "", "")
		} else {
			served <- srv.Serve(ln)
		}
	}()
	hour := time.NewTicker(time.Hour)
	defer hour.Stop()
	var err error
	for isOver := false; !isOver; {
		select {
		case <-hour.C:
			h.logStats()
		case err = <-served:
			isOver = true
		case <-ctx.Done():
			isOver = true
		}
	}
	graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.window+h.transfer)
	defer cancel()
	if srv.Shutdown(graceful) != nil {
		_ = srv.Close()
	}
	if err == nil {
		err = <-served
	}
	conns.Wait()
	h.logStats()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (h *Handler) logStats() {
	s := h.Stats()
	h.log.Info("reflector", "requests", s.Requests, "refused", s.Refused, "limited", s.Limited, "busy", s.Busy, "probes", s.Probes, "echoed", s.Echoed)
}

// boundedListener closes connections beyond maxConns, and beyond connsPerPeer of one prefix.
type boundedListener struct {
	net.Listener
	isProxy func(netip.Addr) bool

	mu  sync.Mutex
	all int
	by  map[netip.Prefix]int
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, _ := netip.ParseAddrPort(conn.RemoteAddr().String()) // the zero Addr is a peer too
		if c := l.admit(conn, peer.Addr().Unmap()); c != nil {
			return c, nil
		}
		_ = conn.Close()
	}
}

// admit counts a connection. It returns nil if there are too many.
func (l *boundedListener) admit(conn net.Conn, peer netip.Addr) net.Conn {
	p, isProxy := clientPrefix(peer), l.isProxy(peer)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxConns || !isProxy && l.by[p] >= connsPerPeer {
		return nil
	}
	l.all++
	l.by[p]++
	return &boundedConn{Conn: conn, release: sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all--
		if l.by[p]--; l.by[p] == 0 {
			delete(l.by, p)
		}
	})}
}

// boundedConn is a connection that boundedListener counts until it is closed.
type boundedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets the server end its side first, so that the client gets a reply although not all
// of its request was read.
func (c *boundedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
