// Package lenient reads the HTTP responses and the XML documents of devices that do not
// follow the standards. It skips markup and headers that it cannot read. The size and the
// depth of a document, the size of a header, and the time of an exchange are limited.
// Each request has a connection of its own, and redirects are not followed.
package lenient

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/netbind"
)

const (
	maxHeader = 16 << 10 // all header lines, including those of interim responses
	maxEndTag = 256      // the maximum size of an end tag
	readSize  = 4 << 10  // the maximum number of body bytes that are read at once
	// chunkOverhead is the maximum number of framing bytes for each byte in a
	// chunk, in addition to maxHeader.
	chunkOverhead = 16
	// responseTimeoutFactor is the maximum time for a response, as a multiple of the timeout for
	// connecting. A device that has accepted a connection may be busy.
	responseTimeoutFactor = 2
	// overrunTimeout bounds the wait for the rest of a document that is longer
	// than its Content-Length.
	overrunTimeout = 500 * time.Millisecond
)

// If the first packet of a connection is lost, the kernel repeats it only after one to three
// seconds. Another attempt costs little, so connect starts another one after each interval.
const (
	dialAttempts = 4
	dialInterval = 250 * time.Millisecond // doubles after each attempt
)

// Dialer contains the parameters of connections. The kernel chooses the interface and
// the source if they are zero values.
type Dialer struct {
	Interface string
	Source    netip.Addr
	Timeout   time.Duration // for connecting; the response may take twice as long
}

// Request is an HTTP request, and the limits for its response.
type Request struct {
	Data  []byte
	Limit int    // maximum size of the response body
	Root  string // name of the element that ends the response
	// Header is the name of a header that the response is requested for. If it is not empty, the
	// body is not read, and Limit and Root are not used.
	Header string
}

// Response is an HTTP response.
type Response struct {
	Status    int
	Header    string // first value of Request.Header that is not empty
	Body      []byte
	Truncated bool       // the header or the body is incomplete
	Local     netip.Addr // this host's address on the connection
}

// Exchange sends the request over a connection of its own and reads the response.
// The error wraps backends.ErrNoReply and its cause, or backends.ErrMalformed. If ctx
// ends, the error is its cause.
func (d Dialer) Exchange(ctx context.Context, to netip.AddrPort, r Request) (Response, error) {
	resp, err := d.roundTrip(ctx, to, r)
	var timeout net.Error
	switch {
	case ctx.Err() != nil && (err != nil || resp.Truncated):
		return resp, context.Cause(ctx)
	case err == nil || errors.Is(err, backends.ErrMalformed):
		return resp, err
	case errors.As(err, &timeout) && timeout.Timeout():
		// A timeout error of package net matches context.DeadlineExceeded and
		// would look like the end of the caller's context.
		err = fmt.Errorf("%v: %w", to, os.ErrDeadlineExceeded)
	}
	return resp, fmt.Errorf("%w: %w", backends.ErrNoReply, err)
}

func (d Dialer) roundTrip(ctx context.Context, to netip.AddrPort, r Request) (Response, error) {
	begin := time.Now()
	conn, err := d.connect(ctx, to)
	if err != nil {
		return Response{}, err
	}
	ctxsync.Replied(ctx, time.Since(begin))
	defer func() { _ = conn.Close() }()
	// If the request is cancelled, the kernel must not retransmit it: the device would process
	// it after later requests. Close drops the data and resets the connection.
	_ = conn.SetLinger(0)
	deadline := time.Now().Add(responseTimeoutFactor * d.Timeout)
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
	if _, err := conn.Write(r.Data); err != nil {
		return Response{}, err
	}
	reader := newReader(conn, r, func() {
		_ = conn.SetReadDeadline(time.Now().Add(min(overrunTimeout, time.Until(deadline))))
	})
	resp, err := reader.read()
	if err == nil {
		_ = conn.SetLinger(-1) // the default
	}
	if local, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		resp.Local = local.AddrPort().Addr().Unmap()
	}
	return resp, err
}

// connect returns the result of the first attempt that completes.
func (d Dialer) connect(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, dialAttempts)
	ctx, cancel := context.WithCancel(ctx)
	attempt := func() { // ends when its result is received below
		conn, err := d.Dial(ctx, "tcp", to)
		results <- result{conn, err}
	}
	go attempt()
	started, interval := 1, dialInterval
	next := time.NewTimer(interval)
	defer next.Stop()
	var first result
	for waiting := true; waiting; {
		select {
		case first = <-results:
			waiting = false
		case <-next.C:
			go attempt()
			if started++; started < dialAttempts {
				interval *= 2
				next.Reset(interval)
			}
		}
	}
	cancel()
	for range started - 1 {
		if late := <-results; late.err == nil {
			_ = late.conn.Close()
		}
	}
	tcp, _ := first.conn.(*net.TCPConn)
	return tcp, first.err
}

// Dial connects to the address over the network, tcp or udp.
func (d Dialer) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	dialer := net.Dialer{Timeout: d.Timeout, KeepAlive: -1}
	if d.Source.IsValid() {
		local := netip.AddrPortFrom(d.Source, 0)
		if dialer.LocalAddr = net.TCPAddrFromAddrPort(local); network == "udp" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(local)
		}
	}
	if d.Interface != "" {
		var err error
		if dialer.Control, err = netbind.ControlNamed(d.Interface); err != nil {
			return nil, err
		}
	}
	return dialer.DialContext(ctx, network, to.String())
}

// responseReader reads an HTTP response from a connection that is used once. It accepts the
// errors of real devices: lines that end in LF alone, a missing reason phrase, headers that are
// folded or have no space, a missing blank line before the body, a missing or wrong length, and
// a connection that stays open after the body.
type responseReader struct {
	r       *bufio.Reader
	request Request
	// onOverrun is called if the body has its announced length but the document
	// has not ended. It bounds the wait for the rest.
	onOverrun func()

	Response
	headerBytes int  // number of header bytes read
	length      int  // the announced length of the body, or -1 if there is none
	chunked     bool // the body is announced in chunks
	scanned     int  // number of body bytes already searched for the end of the document
}

func newReader(r io.Reader, request Request, onOverrun func()) *responseReader {
	return &responseReader{r: bufio.NewReaderSize(r, maxHeader), request: request, onOverrun: onOverrun}
}

// read reads the response. Its error wraps backends.ErrMalformed if the data is
// not an HTTP response. Otherwise it is the error of the connection.
func (r *responseReader) read() (Response, error) {
	for r.Status/100 <= 1 { // interim responses, for example 100 Continue, precede the final one
		if err := r.readHeader(); err != nil {
			return Response{}, err
		}
	}
	if r.request.Header != "" {
		return r.Response, nil
	}
	if r.Status == 204 || r.Status == 304 {
		return Response{Status: r.Status}, nil
	}
	r.chunked = r.chunked && !r.nextByteIs('<') // some devices announce chunks but send none
	err := r.readBody()
	if r.Status/100 != 2 && err != nil {
		r.Truncated, err = true, nil // an error status is sufficient without the body
	}
	return r.Response, err
}

// line reads a header line and returns it without its line ending.
func (r *responseReader) line() (string, error) {
	line, err := r.r.ReadSlice('\n')
	if r.headerBytes += len(line); r.headerBytes > maxHeader || errors.Is(err, bufio.ErrBufferFull) {
		return "", fmt.Errorf("%w: HTTP header of more than %d bytes", backends.ErrMalformed, maxHeader)
	}
	return strings.TrimRight(string(line), "\r\n"), err
}

// nextLine skips blank lines: they follow interim responses and chunks, and precede some
// final responses.
func (r *responseReader) nextLine() (line string, err error) {
	for line == "" && err == nil {
		line, err = r.line()
	}
	return line, err
}

const (
	digits    = "0123456789"
	lineSpace = " \t"
)

// parseStatus returns the status in a status line, also if the line has no slash or no reason.
func parseStatus(line string) (status int, ok bool) {
	if len(line) < len("HTTP") || !strings.EqualFold(line[:len("HTTP")], "HTTP") {
		return 0, false
	}
	version := strings.IndexAny(line, " \t\n\f\r")
	if version < 0 || line[version] != ' ' {
		return 0, false
	}
	text, _, _ := strings.Cut(strings.TrimLeft(line[version:], " "), " ")
	if len(text) != 3 || strings.Trim(text, digits) != "" || text[0] < '1' || text[0] > '5' {
		return 0, false
	}
	status, err := strconv.Atoi(text)
	return status, err == nil
}

// header returns the first value of a header for which valid returns true.
func header(lines []string, name string, valid func(value string) bool) (value string, ok bool) {
	for _, line := range lines {
		key, value, _ := strings.Cut(line, ":")
		if value = strings.Trim(value, lineSpace); strings.EqualFold(strings.Trim(key, lineSpace), name) && valid(value) {
			return value, true
		}
	}
	return "", false
}

// readHeader reads the status line and the header lines.
func (r *responseReader) readHeader() error {
	line, err := r.nextLine()
	status, isStatus := parseStatus(line)
	switch {
	case line == "" && errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case !isStatus:
		return fmt.Errorf("%w: HTTP status line %.32q", backends.ErrMalformed, line)
	}
	var lines []string
	for err == nil && !r.nextByteIs('<') { // the body may follow without a blank line
		if line, err = r.line(); line == "" {
			break
		}
		if unfolded := strings.TrimLeft(line, lineSpace); len(lines) > 0 && unfolded != line { // it continues the line before
			lines[len(lines)-1] += " " + unfolded
			continue
		}
		lines = append(lines, line)
	}
	if r.Truncated = errors.Is(err, io.EOF); err != nil && !r.Truncated {
		return err
	}
	r.Status, r.length = status, -1
	r.Header, _ = header(lines, r.request.Header, func(value string) bool { return value != "" })
	_, r.chunked = header(lines, "Transfer-Encoding", func(value string) bool { return strings.EqualFold(value, "chunked") })
	length, _ := header(lines, "Content-Length", func(value string) bool { return value != "" && strings.Trim(value, digits) == "" })
	if n, err := strconv.ParseUint(length, 10, 31); err == nil {
		r.length = int(n)
	}
	return nil
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
		case len(r.Body) > r.request.Limit:
			return fmt.Errorf("%w: HTTP body of more than %d bytes", backends.ErrMalformed, r.request.Limit)
		case left != 0:
			size := min(readSize, r.request.Limit+1-len(r.Body))
			if left > 0 {
				size = min(size, left)
			}
			r.Body = slices.Grow(r.Body, size)
			size, err = r.r.Read(r.Body[len(r.Body) : len(r.Body)+size])
			left -= size
			r.Body = r.Body[:len(r.Body)+size]
		case r.chunked:
			if left, err = r.chunkSize(); err == nil && left == 0 {
				return nil // the trailer is not read
			}
		case !bytes.Contains(bytes.ToLower(r.Body), []byte(strings.ToLower(r.request.Root))):
			return nil // no document has started
		default:
			left, overrun = -1, true
			r.onOverrun()
		}
		if err != nil {
			r.Truncated = r.Truncated || left >= 0
			if overrun || errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
	return nil
}

// chunkSize reads the line that starts a chunk.
func (r *responseReader) chunkSize() (int, error) {
	line, err := r.nextLine()
	if err != nil {
		return 0, err
	}
	size, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 31)
	if err != nil || int(n) > r.request.Limit {
		return 0, fmt.Errorf("%w: chunk of size %.32q", backends.ErrMalformed, line)
	}
	r.headerBytes = max(0, r.headerBytes-chunkOverhead*int(n))
	return int(n), nil
}

// complete reports whether the end tag of the document's root has been read.
func (r *responseReader) complete() bool {
	for {
		end := bytes.IndexByte(r.Body[r.scanned:], '>')
		if end < 0 {
			r.scanned = len(r.Body)
			return false
		}
		r.scanned += end + 1
		tag := r.Body[max(0, r.scanned-maxEndTag):r.scanned]
		if start := bytes.LastIndexByte(tag, '<'); start >= 0 && isEndTag(tag[start+1:len(tag)-1], r.request.Root) {
			return true
		}
	}
}

// isEndTag reports whether the text between < and > is the end tag of an element with the
// name, which is ASCII. White space, a prefix, and a text after the name are ignored.
func isEndTag(tag []byte, name string) bool {
	const space = " \t\n\f\r"
	tag, isEnd := bytes.CutPrefix(bytes.TrimLeft(tag, space), []byte("/"))
	if !isEnd {
		return false
	}
	tag = bytes.TrimLeft(tag, space)
	if end := bytes.IndexAny(tag, space+"/"); end >= 0 {
		tag = tag[:end]
	}
	return strings.EqualFold(string(tag[bytes.IndexByte(tag, ':')+1:]), name)
}
