package upnp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/netbind"
)

// The maximum sizes of response bodies.
const (
	maxDescription = 256 << 10
	maxResponse    = 128 << 10
	maxListing     = 512 << 10
)

// overrunTimeout bounds the wait for the rest of a document that is longer than
// its Content-Length.
const overrunTimeout = 500 * time.Millisecond

// responseTimeoutFactor is the maximum time for a response, as a multiple of
// the timeout for connecting. A device that has accepted a connection may be
// busy.
const responseTimeoutFactor = 2

const userAgent = "goforward UPnP/1.1"

// notUnderstood reports whether the status is one with which devices reject
// headers or HTTP versions that they do not support.
func (r response) notUnderstood() bool {
	switch r.status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	return false
}

// requestStyle is a form of HTTP requests.
type requestStyle int

const (
	modern requestStyle = iota
	legacy              // HTTP/1.0 with only the headers that every device requires
)

// post returns the HTTP request for an action. Some devices require this order
// of the headers, a SOAPACTION header that is not the last one, or the letter
// case of the standard.
func (e endpoint) post(style requestStyle, service, action string, body []byte) []byte {
	var b bytes.Buffer
	if style == legacy {
		fmt.Fprintf(&b, "POST %s HTTP/1.0\r\nHost: %s\r\nContent-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"%s#%s\"\r\nContent-Length: %d\r\n\r\n",
			e.url.RequestURI(), e.hostHeader(), service, action, len(body))
	} else {
		fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nContent-Type: text/xml; charset=\"utf-8\"\r\nSOAPACTION: \"%s#%s\"\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
			e.url.RequestURI(), e.hostHeader(), userAgent, service, action, len(body))
	}
	b.Write(body)
	return b.Bytes()
}

// get returns the HTTP request for a description.
func (e endpoint) get(style requestStyle) []byte {
	if style == legacy {
		return fmt.Appendf(nil, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", e.url.RequestURI(), e.hostHeader())
	}
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: close\r\n\r\n",
		e.url.RequestURI(), e.hostHeader(), userAgent)
}

// request contains an HTTP request and the limits for its response.
type request struct {
	bytes []byte
	limit int    // maximum size of the response body
	root  string // name of the element that ends the response
	what  string // name in log messages
}

// send sends the request over a connection of its own and reads the response,
// within the configured timeouts. local is this host's address on the
// connection. The error wraps backends.ErrNoReply and its cause, or
// backends.ErrMalformed. If ctx ends, the error is its cause.
func (c ClientConfig) send(ctx context.Context, target endpoint, r request) (resp response, local netip.Addr, err error) {
	resp, local, err = c.roundTrip(ctx, target, r)
	c.Logger.DebugContext(ctx, "upnp exchange", "request", r.what, "url", target.url.String(), "status", resp.status, "error", err)
	switch {
	case ctx.Err() != nil && (err != nil || resp.truncated):
		return resp, local, context.Cause(ctx)
	case err == nil:
		return resp, local, nil
	case errors.Is(err, backends.ErrMalformed):
		return resp, local, err
	}
	return resp, local, fmt.Errorf("%w: %w", backends.ErrNoReply, withoutNetTimeout(err, target))
}

// withoutNetTimeout replaces a timeout error of package net, because such
// errors match context.DeadlineExceeded and would look like the end of the
// caller's context.
func withoutNetTimeout(err error, target endpoint) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%v: %w", target.addr, os.ErrDeadlineExceeded)
	}
	return err
}

func (c ClientConfig) roundTrip(ctx context.Context, target endpoint, r request) (response, netip.Addr, error) {
	dialCtx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	conn, err := c.dial(dialCtx, target.addr)
	if err != nil {
		return response{}, netip.Addr{}, err
	}
	defer conn.Close()
	// If the request is cancelled, the kernel must not retransmit it: the
	// device would process it after later requests.
	linger(conn, 0)
	deadline := time.Now().Add(responseTimeoutFactor * c.Timeout)
	_ = conn.SetDeadline(deadline) // fails only on closed connections
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.Close()
	})
	defer func() {
		if !stop() {
			<-interrupted
		}
	}()
	if _, err := conn.Write(r.bytes); err != nil {
		return response{}, netip.Addr{}, err
	}
	reader := responseReader{r: bufio.NewReader(conn), limit: r.limit, root: r.root, onOverrun: func() {
		_ = conn.SetReadDeadline(earlier(deadline, time.Now().Add(overrunTimeout)))
	}}
	resp, err := reader.read()
	if err == nil {
		linger(conn, -1)
	}
	return resp, localAddr(conn), err
}

// linger sets what Close does with unsent data. If seconds is 0, Close drops the
// data and resets the connection. -1 is the kernel's default.
func linger(conn net.Conn, seconds int) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(seconds) // fails only on closed connections
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// If the first packet of a connection is lost, the kernel repeats it only after
// one to three seconds. Another attempt costs little, so dial starts another one
// after each interval. dial returns the result of the first attempt that
// completes.
const (
	dialAttempts = 4
	dialInterval = 250 * time.Millisecond // doubles after each attempt
)

// dial connects to the address and port, from the configured interface and
// source.
func (c ClientConfig) dial(ctx context.Context, target netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if c.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.Source, 0))
	}
	if c.Interface != "" {
		ifi, err := net.InterfaceByName(c.Interface)
		if err != nil {
			return nil, err
		}
		if d.Control, err = netbind.Control(ifi); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan dialResult)
	started := 0
	start := func() {
		started++
		go func() { // ends when its result is received below
			conn, err := d.DialContext(ctx, "tcp", target.String())
			results <- dialResult{conn, err}
		}()
	}
	start()
	timer := time.NewTimer(dialInterval)
	defer timer.Stop()
	for {
		select {
		case result := <-results:
			cancel()
			for range started - 1 {
				(<-results).discard()
			}
			return result.conn, result.err
		case <-timer.C:
			if started < dialAttempts {
				start()
				timer.Reset(dialInterval << (started - 1))
			}
		}
	}
}

// dialResult is the result of an attempt to connect.
type dialResult struct {
	conn net.Conn
	err  error
}

func (r dialResult) discard() {
	if r.err == nil {
		_ = r.conn.Close()
	}
}

// localAddr returns this host's address on the connection.
func localAddr(conn net.Conn) netip.Addr {
	tcp, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}
