package upnp

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
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

// request is an HTTP request, a POST for an action or else a GET, and the limits
// for its response.
type request struct {
	service, action string
	body            []byte
	limit           int    // maximum size of the response body
	root            string // name of the element that ends the response
}

// encode returns the request. Some devices require this order of the headers, a
// SOAPACTION header that is not the last one, or the letter case of the standard.
// The legacy form is HTTP/1.0 with only the headers that every device requires.
func (r request) encode(target ipURL, legacy bool) []byte {
	method, headers := "GET", ""
	version, agent, soapAction, end := "1.1", "User-Agent: "+userAgent+"\r\n", "SOAPACTION", "Connection: close\r\n"
	if legacy {
		version, agent, soapAction, end = "1.0", "", "SOAPAction", ""
	}
	if r.action != "" {
		method, headers = "POST", fmt.Sprintf("Content-Type: text/xml; charset=\"utf-8\"\r\n%s: \"%s#%s\"\r\nContent-Length: %d\r\n",
			soapAction, r.service, r.action, len(r.body))
	}
	return fmt.Appendf(nil, "%s %s HTTP/%s\r\nHost: %s\r\n%s%s%s\r\n%s",
		method, target.url.RequestURI(), version, target.hostHeader(), agent, headers, end, r.body)
}

// notUnderstood contains the statuses with which devices reject headers or HTTP
// versions that they do not support.
var notUnderstood = []int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented}

// exchange sends the request and passes the response to read. If read returns an
// *HTTPError with one of these statuses, exchange sends the request again in its
// legacy form: the device has not performed the action.
func (c ClientConfig) exchange(ctx context.Context, target ipURL, r request, read func(response) error) error {
	var err error
	for _, legacy := range []bool{false, true} {
		var resp response
		if resp, err = c.send(ctx, target, r, legacy); err != nil {
			return err
		}
		var status *HTTPError
		if err = read(resp); !errors.As(err, &status) || !slices.Contains(notUnderstood, status.Status) {
			return err
		}
	}
	return err
}

// send sends the request over a connection of its own and reads the response,
// within the configured timeouts. The error wraps backends.ErrNoReply and its
// cause, or backends.ErrMalformed. If ctx ends, the error is its cause.
func (c ClientConfig) send(ctx context.Context, target ipURL, r request, legacy bool) (response, error) {
	resp, err := c.roundTrip(ctx, target, r, legacy)
	c.Logger.DebugContext(ctx, "upnp: request", "op", cmp.Or(r.action, "description"), "url", target.url.String(), "status", resp.status, "err", err)
	switch {
	case ctx.Err() != nil && (err != nil || resp.truncated):
		return resp, context.Cause(ctx)
	case err == nil || errors.Is(err, backends.ErrMalformed):
		return resp, err
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		// A timeout error of package net matches context.DeadlineExceeded and
		// would look like the end of the caller's context.
		err = fmt.Errorf("%v: %w", target.addr, os.ErrDeadlineExceeded)
	}
	return resp, fmt.Errorf("%w: %w", backends.ErrNoReply, err)
}

func (c ClientConfig) roundTrip(ctx context.Context, target ipURL, r request, legacy bool) (response, error) {
	conn, err := c.dial(ctx, target.addr)
	if err != nil {
		return response{}, err
	}
	defer conn.Close()
	// If the request is cancelled, the kernel must not retransmit it: the
	// device would process it after later requests. Close drops the data and
	// resets the connection.
	_ = conn.SetLinger(0)
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
	if _, err := conn.Write(r.encode(target, legacy)); err != nil {
		return response{}, err
	}
	reader := responseReader{r: bufio.NewReaderSize(conn, maxHeader), limit: r.limit, root: r.root, onOverrun: func() {
		_ = conn.SetReadDeadline(time.Now().Add(min(overrunTimeout, time.Until(deadline))))
	}}
	resp, err := reader.read()
	if err == nil {
		_ = conn.SetLinger(-1) // the default
	}
	if local, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		resp.local = local.AddrPort().Addr().Unmap()
	}
	return resp, err
}

// If the first packet of a connection is lost, the kernel repeats it only after
// one to three seconds. Another attempt costs little, so dial starts another one
// after each interval. dial returns the result of the first attempt that
// completes.
const (
	dialAttempts = 4
	dialInterval = 250 * time.Millisecond // doubles after each attempt
)

// dialer returns a dialer that sends from the configured interface and source.
// network converts the source to an address of the network.
func (c ClientConfig) dialer(network func(netip.AddrPort) net.Addr) (d net.Dialer, err error) {
	d.Timeout, d.KeepAlive = c.Timeout, -1
	if c.Source.IsValid() {
		d.LocalAddr = network(netip.AddrPortFrom(c.Source, 0))
	}
	if c.Interface != "" {
		ifi, err := net.InterfaceByName(c.Interface)
		if err != nil {
			return d, fmt.Errorf("interface %q: %w", c.Interface, err)
		}
		if d.Control, err = netbind.Control(ifi); err != nil {
			return d, err
		}
	}
	return d, nil
}

// dial connects to the address and port.
func (c ClientConfig) dial(ctx context.Context, target netip.AddrPort) (*net.TCPConn, error) {
	d, err := c.dialer(func(a netip.AddrPort) net.Addr { return net.TCPAddrFromAddrPort(a) })
	if err != nil {
		return nil, err
	}
	results := make(chan func() (*net.TCPConn, error))
	ctx, cancel := context.WithCancel(ctx)
	for i := range dialAttempts {
		go func() { // ends when its result is received below
			select {
			case <-time.After(dialInterval * (1<<i - 1)):
			case <-ctx.Done():
			}
			conn, err := d.DialContext(ctx, "tcp", target.String())
			tcp, _ := conn.(*net.TCPConn)
			results <- func() (*net.TCPConn, error) { return tcp, err }
		}()
	}
	first := <-results
	cancel()
	for range dialAttempts - 1 {
		if late, err := (<-results)(); err == nil {
			_ = late.Close()
		}
	}
	return first()
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
	truncated bool       // the header or the body is incomplete
	local     netip.Addr // this host's address on the connection
}

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

	response
	headerBytes int  // number of header bytes read
	length      int  // the announced length of the body, or -1 if there is none
	chunked     bool // the body is announced in chunks
	scanned     int  // number of body bytes already searched for the end of the document
}

// read reads the response. Its error wraps backends.ErrMalformed if the data is
// not an HTTP response. Otherwise it is the error of the connection.
func (r *responseReader) read() (response, error) {
	for r.status/100 <= 1 { // interim responses, for example 100 Continue, precede the final one
		if err := r.readStatus(); err != nil {
			return response{}, err
		}
		if err := r.readHeader(); err != nil {
			return response{}, err
		}
	}
	if r.status == 204 || r.status == 304 {
		return response{status: r.status}, nil
	}
	r.chunked = r.chunked && !r.nextByteIs('<') // some devices announce chunks but send none
	err := r.readBody()
	if r.status/100 != 2 && err != nil {
		r.truncated, err = true, nil // an error status is sufficient without the body
	}
	return r.response, err
}

// line reads a header line and returns it without its line ending.
func (r *responseReader) line() (string, error) {
	line, err := r.r.ReadSlice('\n')
	if r.headerBytes += len(line); r.headerBytes > maxHeader || errors.Is(err, bufio.ErrBufferFull) {
		return "", malformed("HTTP header of more than %d bytes", maxHeader)
	}
	return strings.TrimRight(string(line), "\r\n"), err
}

func (r *responseReader) readStatus() error {
	line, err := "", error(nil)
	for line == "" && err == nil { // blank lines follow interim responses and precede some final ones
		line, err = r.line()
	}
	switch {
	case line == "" && errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case line == "" || err != nil && !errors.Is(err, io.EOF):
		return err
	}
	code := statusLine.FindStringSubmatch(line)
	if code == nil {
		return malformed("HTTP status line %q", clip(line))
	}
	r.status, err = strconv.Atoi(code[1])
	return err
}

// statusLine matches a status line, also if it has no slash or no reason.
var statusLine = regexp.MustCompile(`(?i)^HTTP\S* +([1-5][0-9][0-9])( |$)`)

// readHeader reads the header lines.
func (r *responseReader) readHeader() (err error) {
	var lines []string
	for err == nil && !r.nextByteIs('<') { // the body may follow without a blank line
		var line string
		if line, err = r.line(); line == "" {
			break
		}
		if folded := strings.TrimLeft(line, " \t"); folded != line && folded != "" && len(lines) > 0 {
			lines[len(lines)-1] += " " + folded
		} else {
			lines = append(lines, line)
		}
	}
	r.length, r.chunked, r.truncated = -1, false, false
	if errors.Is(err, io.EOF) {
		r.truncated, err = true, nil
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name = strings.TrimSpace(name); {
		case strings.EqualFold(name, "Content-Length"):
			if n, err := strconv.ParseUint(value, 10, 31); err == nil {
				r.length = int(n)
			}
		case strings.EqualFold(name, "Transfer-Encoding"):
			r.chunked = strings.EqualFold(value, "chunked")
		}
	}
	return err
}

// nextByteIs reports whether c is the next byte.
func (r *responseReader) nextByteIs(c byte) bool {
	b, err := r.r.Peek(1)
	return err == nil && b[0] == c
}

// readBody reads until the document ends, the connection ends, or the announced
// length is reached and no document has started. The end of the connection is not
// an error, because the document shows whether something is missing.
func (r *responseReader) readBody() error {
	left, overrun := r.length, false // left is negative if the length is unknown
	if r.chunked {
		left, r.headerBytes = 0, 0
	}
	for !r.complete() {
		var err error
		switch {
		case left != 0:
			var buf [4096]byte
			size := min(len(buf), r.limit+1-len(r.body))
			if left > 0 {
				size = min(size, left)
			}
			size, err = r.r.Read(buf[:size])
			left -= size
			if r.body = append(r.body, buf[:size]...); len(r.body) > r.limit {
				return malformed("HTTP body of more than %d bytes", r.limit)
			}
		case r.chunked:
			if left, err = r.chunkSize(); err == nil && left == 0 {
				return nil // the trailer is not read
			}
		case !bytes.Contains(bytes.ToLower(r.body), []byte(strings.ToLower(r.root))):
			return nil // no document has started
		default:
			left, overrun = -1, true
			r.onOverrun()
		}
		if err != nil {
			r.truncated = r.truncated || left >= 0
			if overrun || errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
	return nil
}

// chunkOverhead is the maximum number of framing bytes for each byte in a
// chunk, in addition to maxHeader.
const chunkOverhead = 16

// chunkSize reads the line that starts a chunk, and the line end of the
// previous chunk.
func (r *responseReader) chunkSize() (int, error) {
	line, err := "", error(nil)
	for line == "" && err == nil {
		line, err = r.line()
	}
	if err != nil {
		return 0, err
	}
	size, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 31)
	if err != nil || int(n) > r.limit {
		return 0, malformed("chunk of size %q", clip(line))
	}
	r.headerBytes = max(0, r.headerBytes-chunkOverhead*int(n))
	return int(n), nil
}

// complete reports whether the end tag of the document's root has been read.
func (r *responseReader) complete() bool {
	rest := r.body[max(0, r.scanned-maxEndTag):]
	r.scanned = len(r.body)
	for {
		end := bytes.IndexByte(rest, '>')
		if end < 0 {
			return false
		}
		tag := rest[max(0, end-maxEndTag):end]
		if start := bytes.LastIndexByte(tag, '<'); start >= 0 {
			name, isEnd := strings.CutPrefix(strings.Trim(string(tag[start+1:]), blanks), "/")
			if isEnd && strings.EqualFold(tagName(name), r.root) {
				return true
			}
		}
		rest = rest[end+1:]
	}
}
