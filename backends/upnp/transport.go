package upnp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/natforward/goforward/backends"
)

// The bounds of bodies.
const (
	maxDescription = 256 << 10
	maxAnswer      = 128 << 10
	maxListing     = 512 << 10
)

// grace is how long the rest of a document may take that is longer than
// announced.
const grace = 500 * time.Millisecond

// patience is how much longer the answer may take than the connection: who is
// there may be busy.
const patience = 2

const userAgent = "goforward UPnP/1.1"

// exchange is one action over HTTP: an http.RoundTripper that writes the
// request as picky devices want it and turns any readable answer into what
// goupnp reads. It is used once.
type exchange struct {
	question
	config ClientConfig
	to     endpoint

	status int   // of the answer
	err    error // what went wrong, which goupnp keeps the text of only
}

// RoundTrip sends the request's body as the action's.
func (x *exchange) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil {
		return nil, err
	}
	// Newlines between elements are too much for some devices, and the
	// arguments are ASCII.
	body = append([]byte(`<?xml version="1.0"?>`), bytes.TrimPrefix(body, []byte(xml.Header))...)
	envelope, isFault, err := x.ask(r.Context(), body)
	if err != nil {
		x.err = err
		return nil, err
	}
	status := http.StatusOK
	if isFault {
		status = http.StatusInternalServerError
	}
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(envelope)), ContentLength: int64(len(envelope)), Request: r,
	}, nil
}

// ask performs the action, twice where the first form of the request was not
// understood: no fault came with the status, so nothing was done.
func (x *exchange) ask(ctx context.Context, body []byte) (envelope []byte, isFault bool, err error) {
	limit := maxAnswer
	if x.action == listAction {
		limit = maxListing
	}
	for _, form := range []form{modern, legacy} {
		var a answer
		a, _, err = x.config.send(ctx, x.to, request{
			bytes: x.to.post(form, x.service, x.action, body), limit: limit, root: "Envelope", what: x.action,
		})
		if err != nil {
			return nil, false, err
		}
		x.status = a.status
		envelope, isFault, err = x.normalise(a)
		if envelope != nil || err != nil {
			return envelope, isFault, err
		}
		if err = a.err(); form == legacy || !a.notUnderstood() {
			return nil, false, err
		}
	}
	return nil, false, err
}

// err is what is wrong with an answer that holds nothing readable.
func (a answer) err() error {
	if a.status/100 != 2 {
		return &HTTPError{Status: a.status}
	}
	return malformed("%d bytes that are no answer", len(a.body))
}

// notUnderstood reports the statuses that devices have for headers or a
// version of HTTP that they do not know.
func (a answer) notUnderstood() bool {
	switch a.status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	return false
}

// form is a way to write requests.
type form int

const (
	modern form = iota
	legacy      // HTTP/1.0 and the headers that no device can do without
)

// post is the request that performs an action. The order of the headers is
// fixed, SOAPACTION is not the last, and its case is the standard's: there are
// devices that insist on each.
func (e endpoint) post(f form, service, action string, body []byte) []byte {
	var b bytes.Buffer
	if f == legacy {
		fmt.Fprintf(&b, "POST %s HTTP/1.0\r\nHost: %s\r\nContent-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"%s#%s\"\r\nContent-Length: %d\r\n\r\n",
			e.url.RequestURI(), e.host(), service, action, len(body))
	} else {
		fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nContent-Type: text/xml; charset=\"utf-8\"\r\nSOAPACTION: \"%s#%s\"\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
			e.url.RequestURI(), e.host(), userAgent, service, action, len(body))
	}
	b.Write(body)
	return b.Bytes()
}

// get is the request for a description.
func (e endpoint) get(f form) []byte {
	if f == legacy {
		return fmt.Appendf(nil, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", e.url.RequestURI(), e.host())
	}
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: close\r\n\r\n",
		e.url.RequestURI(), e.host(), userAgent)
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
func (c ClientConfig) send(ctx context.Context, to endpoint, r request) (a answer, local netip.Addr, err error) {
	a, local, err = c.converse(ctx, to, r)
	c.Logger.DebugContext(ctx, "upnp exchange", "what", r.what, "url", to.url.String(), "status", a.status, "error", err)
	switch {
	case ctx.Err() != nil && (err != nil || a.cut):
		return a, local, context.Cause(ctx)
	case err == nil:
		return a, local, nil
	case errors.Is(err, backends.ErrMalformed):
		return a, local, err
	}
	return a, local, fmt.Errorf("%w: %w", backends.ErrNoReply, ownTimeout(err, to))
}

// ownTimeout is a cause that nobody takes for the end of the caller's context,
// as package net's timeouts are taken.
func ownTimeout(err error, to endpoint) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%v: %w", to.addr, os.ErrDeadlineExceeded)
	}
	return err
}

func (c ClientConfig) converse(ctx context.Context, to endpoint, r request) (answer, netip.Addr, error) {
	dialing, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	conn, err := c.dial(dialing, to.addr)
	if err != nil {
		return answer{}, netip.Addr{}, err
	}
	defer conn.Close()
	// What is given up is not to be sent again by the kernel, and done by the device
	// after what came later.
	linger(conn, 0)
	deadline := time.Now().Add(patience * c.Timeout)
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
		return answer{}, netip.Addr{}, err
	}
	reader := answerReader{r: bufio.NewReader(conn), limit: r.limit, root: r.root, late: func() {
		_ = conn.SetReadDeadline(earlier(deadline, time.Now().Add(grace)))
	}}
	a, err := reader.read()
	if err == nil {
		linger(conn, -1)
	}
	return a, localAddr(conn), err
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
