package upnp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
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
func (e ipURL) post(style requestStyle, service, action string, body []byte) []byte {
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
func (e ipURL) get(style requestStyle) []byte {
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
func (c ClientConfig) send(ctx context.Context, target ipURL, r request) (resp response, local netip.Addr, err error) {
	resp, local, err = c.roundTrip(ctx, target, r)
	c.Logger.DebugContext(ctx, "upnp: request", "op", r.what, "url", target.url.String(), "status", resp.status, "err", err)
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
func withoutNetTimeout(err error, target ipURL) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("%v: %w", target.addr, os.ErrDeadlineExceeded)
	}
	return err
}

func (c ClientConfig) roundTrip(ctx context.Context, target ipURL, r request) (response, netip.Addr, error) {
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
			return nil, fmt.Errorf("interface %q: %w", c.Interface, err)
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

// The limits for everything except the body.
const (
	maxHeader = 16 << 10 // all header lines, including those of interim responses
	maxEndTag = 64
)

// response is an HTTP response.
type response struct {
	status    int
	body      []byte
	truncated bool // the header or the body is incomplete
}

// succeeded reports whether the status is a success and the body is complete.
func (r response) succeeded() bool { return r.status/100 == 2 && !r.truncated }

// responseReader reads an HTTP response from a connection that is used once. It
// accepts the errors of real devices: lines that end in LF alone, a missing
// reason phrase, headers that are folded or have no space, a missing blank line
// before the body, a missing or wrong length, and a connection that stays open
// after the body.
type responseReader struct {
	r     *bufio.Reader
	limit int    // maximum size of the body
	root  string // the element that ends the document
	// onOverrun is called if the body has its announced length but the document
	// has not ended. It bounds the wait for the rest.
	onOverrun func()

	headerBytes     int  // number of header bytes read
	headerTruncated bool // the connection ended within the header
}

// read reads the response. Its error wraps backends.ErrMalformed if the data is
// not an HTTP response. Otherwise it is the error of the connection.
func (r *responseReader) read() (response, error) {
	for {
		status, err := r.readStatus()
		if err != nil {
			return response{}, err
		}
		length, chunked, err := r.readHeader()
		if err != nil {
			return response{}, err
		}
		switch {
		case status/100 == 1: // interim responses, for example 100 Continue
			continue
		case status == 204 || status == 304:
			return response{status: status}, nil
		}
		b := bodyReader{responseReader: r, length: length}
		if chunked && !r.nextByteIs('<') { // some devices announce chunks but send none
			err = b.readChunked()
		} else {
			err = b.readPlain()
		}
		if status/100 != 2 && err != nil {
			b.truncated, err = true, nil // an error status is sufficient without the body
		}
		return response{status: status, body: b.body, truncated: b.truncated || r.headerTruncated}, err
	}
}

// line reads a header line and returns it without its line ending.
func (r *responseReader) line() (string, error) {
	var line []byte
	for {
		part, err := r.r.ReadSlice('\n')
		line = append(line, part...)
		if r.headerBytes += len(part); r.headerBytes > maxHeader {
			return "", malformed("HTTP header of more than %d bytes", maxHeader)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return strings.TrimRight(string(line), "\r\n"), err
	}
}

func (r *responseReader) readStatus() (int, error) {
	for {
		line, err := r.line()
		if line == "" && err == nil {
			continue // blank lines follow interim responses and precede some final ones
		}
		if line == "" {
			return 0, unexpectedEOF(err)
		}
		version, rest, _ := strings.Cut(line, " ")
		code, _, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		status, codeErr := strconv.ParseUint(code, 10, 16)
		if !strings.HasPrefix(version, "HTTP/") || codeErr != nil || status < 100 || status > 599 {
			return 0, malformed("HTTP status line %q", clip(line))
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		return int(status), nil
	}
}

// readHeader reads the header lines. It returns the length of the body, -1 if
// it is not announced, and whether the body is chunked.
func (r *responseReader) readHeader() (length int64, chunked bool, err error) {
	length = -1
	parse := func(header string) {
		name, value, _ := strings.Cut(header, ":")
		value = strings.TrimSpace(value)
		switch name = strings.TrimSpace(name); {
		case strings.EqualFold(name, "Content-Length"):
			if n, err := strconv.ParseUint(value, 10, 32); err == nil {
				length = int64(n)
			}
		case strings.EqualFold(name, "Transfer-Encoding"):
			chunked = strings.EqualFold(value, "chunked")
		}
	}
	header := ""
	for !r.nextByteIs('<') { // the body may follow without a blank line
		line, err := r.line()
		if folded := strings.TrimLeft(line, " \t"); folded != line && folded != "" {
			header += " " + folded
			continue
		}
		parse(header)
		header = line
		r.headerTruncated = errors.Is(err, io.EOF)
		if line == "" || r.headerTruncated {
			break
		}
		if err != nil {
			return 0, false, err
		}
	}
	parse(header)
	return length, chunked, nil
}

// nextByteIs reports whether c is the next byte.
func (r *responseReader) nextByteIs(c byte) bool {
	b, err := r.r.Peek(1)
	return err == nil && b[0] == c
}

// unexpectedEOF replaces io.EOF by io.ErrUnexpectedEOF.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// bodyReader reads the body of a response.
type bodyReader struct {
	*responseReader
	length    int64 // the announced length, or -1 if there is none
	body      []byte
	scanned   int  // number of body bytes already searched for the end of the document
	overrun   bool // the body exceeds its announced length
	truncated bool // the connection ended before the body did
}

// readPlain reads until the document ends, until the announced length is
// reached and no document has started, or until the connection ends.
func (b *bodyReader) readPlain() error {
	for !b.complete() {
		if b.length >= 0 && int64(len(b.body)) >= b.length && !b.overrun {
			if !b.documentStarted() {
				return nil
			}
			b.overrun = true
			b.onOverrun()
		}
		n := b.limit + 1 - len(b.body)
		if b.length >= 0 && !b.overrun {
			n = int(min(int64(n), b.length-int64(len(b.body))))
		}
		if err := b.readSome(n); err != nil {
			return b.endError(err, b.length >= 0)
		}
	}
	return nil
}

// chunkOverhead is the maximum number of framing bytes for each byte in a
// chunk, in addition to maxHeader.
const chunkOverhead = 16

func (b *bodyReader) readChunked() error {
	b.headerBytes = 0
	for !b.complete() {
		n, err := b.chunkSize()
		b.headerBytes = max(0, b.headerBytes-chunkOverhead*n)
		if err != nil {
			return b.endError(err, true)
		}
		if n == 0 {
			return nil // the trailer is not read
		}
		for end := len(b.body) + n; len(b.body) < end && !b.complete(); {
			if err := b.readSome(end - len(b.body)); err != nil {
				return b.endError(err, true)
			}
		}
	}
	return nil
}

// endError returns the error for a body that ended with err. incomplete means
// that the length or the chunks announced more bytes. The end of the connection
// is not an error, because the document shows whether something is missing.
func (b *bodyReader) endError(err error, incomplete bool) error {
	b.truncated = incomplete && !b.overrun
	if b.overrun || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// readSome reads at most n bytes. It fails if the body exceeds its limit.
func (b *bodyReader) readSome(n int) error {
	var buf [4096]byte
	got, err := b.r.Read(buf[:min(n, len(buf))])
	b.body = append(b.body, buf[:got]...)
	if len(b.body) > b.limit {
		b.overrun = false
		return malformed("HTTP body of more than %d bytes", b.limit)
	}
	return err
}

// chunkSize reads the line that starts a chunk, and the line end of the
// previous chunk.
func (b *bodyReader) chunkSize() (int, error) {
	for {
		line, err := b.line()
		if err != nil {
			return 0, err
		}
		if line == "" {
			continue
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 31)
		if err != nil || int(n) > b.limit {
			return 0, malformed("chunk of size %q", clip(line))
		}
		return int(n), nil
	}
}

// complete reports whether the end tag of the document's root has been read.
func (b *bodyReader) complete() bool {
	rest := b.body[max(0, b.scanned-maxEndTag):]
	b.scanned = len(b.body)
	for {
		end := bytes.IndexByte(rest, '>')
		if end < 0 {
			return false
		}
		tag := rest[max(0, end-maxEndTag):end]
		if start := bytes.LastIndex(tag, []byte("</")); start >= 0 && b.isRoot(tag[start+2:]) {
			return true
		}
		rest = rest[end+1:]
	}
}

// isRoot reports whether a tag has the name of the document's root, with or
// without a prefix.
func (b *bodyReader) isRoot(name []byte) bool {
	if i := bytes.IndexByte(name, ':'); i >= 0 {
		name = name[i+1:]
	}
	return bytes.EqualFold(bytes.TrimSpace(name), []byte(b.root))
}

// documentStarted reports whether the body contains the name of the root
// element. If it does, and complete returned false, the rest of the document is
// missing.
func (b *bodyReader) documentStarted() bool {
	return bytes.Contains(bytes.ToLower(b.body), []byte(strings.ToLower(b.root)))
}
