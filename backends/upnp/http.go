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

// The bounds of bodies.
const (
	maxDescription = 256 << 10
	maxResponse    = 128 << 10
	maxListing     = 512 << 10
)

// grace is how long the rest of a document may take that is longer than
// announced.
const overrunTimeout = 500 * time.Millisecond

// patience is how much longer the answer may take than the connection: who is
// there may be busy.
const responseTimeoutFactor = 2

const userAgent = "goforward UPnP/1.1"

// notUnderstood reports the statuses that devices have for headers or a
// version of HTTP that they do not know.
func (r response) notUnderstood() bool {
	switch r.status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	return false
}

// form is a way to write requests.
type requestStyle int

const (
	modern requestStyle = iota
	legacy              // HTTP/1.0 and the headers that no device can do without
)

// post is the request that performs an action. The order of the headers is
// fixed, SOAPACTION is not the last, and its case is the standard's: there are
// devices that insist on each.
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

// get is the request for a description.
func (e endpoint) get(style requestStyle) []byte {
	if style == legacy {
		return fmt.Appendf(nil, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", e.url.RequestURI(), e.hostHeader())
	}
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: close\r\n\r\n",
		e.url.RequestURI(), e.hostHeader(), userAgent)
}

// request is what to send, and what to expect.
type request struct {
	bytes []byte
	limit int    // of the answer's body
	root  string // the element that ends with the answer
	what  string // for the log
}

// send sends the request over a connection of its own and reads the answer,
// all within the configured timeout. local is this host's address on it. The
// error wraps backends.ErrNoReply and its cause, or backends.ErrMalformed, or
// the cause of the context's end.
func (c ClientConfig) send(ctx context.Context, target endpoint, r request) (resp response, local netip.Addr, err error) {
	resp, local, err = c.roundTrip(ctx, target, r)
	c.Logger.DebugContext(ctx, "upnp exchange", "what", r.what, "url", target.url.String(), "status", resp.status, "error", err)
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

// ownTimeout is a cause that nobody takes for the end of the caller's context,
// as package net's timeouts are taken.
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
	// What is given up is not to be sent again by the kernel, and done by the device
	// after what came later.
	linger(conn, 0)
	deadline := time.Now().Add(responseTimeoutFactor * c.Timeout)
	_ = conn.SetDeadline(deadline) // fails on closed connections only
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

// linger is what Close does with what has not been sent: 0 drops it, and resets the
// connection; -1 is the kernel's way.
func linger(conn net.Conn, seconds int) {
	if tcp, is := conn.(*net.TCPConn); is {
		_ = tcp.SetLinger(seconds) // fails on closed connections only
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// A lost packet that opens a connection costs the kernel a second or three.
// Another attempt costs nothing, so one is begun each time that a little longer
// has passed; the first that succeeds, or fails for certain, counts.
const (
	dialAttempts = 4
	dialInterval = 250 * time.Millisecond // doubling
)

// dial connects to exactly that address and port, from the configured
// interface and source.
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
		go func() { // waited for by its answer
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

// attempt is what came of one.
type dialResult struct {
	conn net.Conn
	err  error
}

func (r dialResult) discard() {
	if r.err == nil {
		_ = r.conn.Close()
	}
}

// localAddr is this host's address on the connection.
func localAddr(conn net.Conn) netip.Addr {
	tcp, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}
