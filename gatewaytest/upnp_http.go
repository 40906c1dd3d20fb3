package gatewaytest

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

const (
	// maxConns is the maximum number of open HTTP connections. Further connections are
	// closed immediately.
	maxConns = 256
	// maxRequestsPerConn is the maximum number of requests on a connection.
	maxRequestsPerConn = 256
	// httpTimeout is the maximum time for a client to send a request, and to receive a
	// response.
	httpTimeout = 30 * time.Second
	// lingerTimeout is the maximum time to wait until a client has read a response.
	lingerTimeout = 2 * time.Second
)

// httpServer is one of the HTTP servers, over IPv4 or IPv6.
type httpServer struct {
	network string
	addr    netip.AddrPort   // the port is chosen when it is first opened
	ln      *net.TCPListener // nil while down
}

// base returns the start of the server's URLs. The caller holds Gateway.mu.
func (h *httpServer) base() string {
	addr := h.addr
	if addr.Addr().IsUnspecified() {
		addr = netip.AddrPortFrom(loopback, addr.Port())
	}
	return "http://" + netip.AddrPortFrom(addr.Addr().WithZone(""), addr.Port()).String()
}

// accept accepts connections until the listener is closed.
func (s *upnpServer) accept(server *httpServer, ln *net.TCPListener) {
	for {
		c, err := ln.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			if !s.g.sleep(time.Millisecond) {
				return
			}
			continue
		}
		if !s.track(server, ln, c) {
			_ = c.Close()
			continue
		}
		s.g.spawn(func() { s.serveConn(server, c) })
	}
}

// track records the connection, so that closeConns closes it. It returns false if there
// are too many connections, or if the listener has been replaced or closed. In that
// case, closeConns may already have run and would not close the connection.
func (s *upnpServer) track(server *httpServer, ln *net.TCPListener, c *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns || !s.isCurrent(server, ln) {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// isCurrent reports whether the server still uses the listener.
func (s *upnpServer) isCurrent(server *httpServer, ln *net.TCPListener) bool {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return server.ln == ln
}

// closeConns closes all connections.
func (s *upnpServer) closeConns() {
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	closeAll(all)
}

// serveConn responds to one request on a connection, or to several with the quirk
// LeaveOpen.
func (s *upnpServer) serveConn(server *httpServer, c *net.TCPConn) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	in := bufio.NewReaderSize(c, maxHeaderBytes)
	for range maxRequestsPerConn {
		_ = c.SetDeadline(time.Now().Add(httpTimeout))
		r, err := readRequest(in)
		if len(r.raw) == 0 {
			return
		}
		r.err = err
		r.source, r.local = remoteAddrPort(c), localAddr(c)
		s.g.mu.Lock()
		r.base = server.base()
		s.g.mu.Unlock()
		if !s.serveRequest(c, r) {
			return
		}
		if !s.config.Wire.LeaveOpen || err != nil {
			linger(c)
			return
		}
	}
}

// serveRequest responds to a request. It returns false if the connection must be closed at
// once, without waiting until the client has read a response.
func (s *upnpServer) serveRequest(c *net.TCPConn, r httpRequest) bool {
	q := s.identify(&r)
	var end func(*net.TCPConn)
	replies, fault := s.g.respondWith(q, func(forcedResult int) [][]byte {
		var b []byte
		b, end = s.respond(&r, forcedResult)
		return oneReply(b)
	})
	s.g.record.add(q, len(replies) == 0)
	if !s.g.waitForFault(fault) || !s.g.sleep(actionQuirk(s.config.Actions.Delay, q.Action)) {
		return false
	}
	if end != nil {
		end(c)
		return false
	}
	if len(replies) == 0 {
		return false
	}
	s.g.record.count(func(s *Stats) { s.Replies++ })
	_ = c.SetDeadline(time.Now().Add(httpTimeout))
	_, err := c.Write(bytes.Join(replies, nil))
	return err == nil
}

// hang waits until the client or closeConns closes the connection.
func hang(c *net.TCPConn) {
	_ = c.SetDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, c)
}

// linger waits until the client has read the response. If the connection were closed
// while unread data is in the receive buffer, the system would reset it.
func linger(c *net.TCPConn) {
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(lingerTimeout))
	b := make([]byte, 1024)
	for range 1024 {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

// remoteAddrPort returns the address of the client of a connection.
func remoteAddrPort(c *net.TCPConn) netip.AddrPort {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
}

// localAddr returns the gateway's address on a connection.
func localAddr(c *net.TCPConn) netip.Addr {
	return c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// The size limits of requests, in bytes.
const (
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 64 << 10
)

// httpRequest is an HTTP request that the gateway received.
type httpRequest struct {
	raw     []byte
	source  netip.AddrPort
	local   netip.Addr // the gateway's address on the connection
	base    string     // start of the URLs of the server that received the request
	err     error      // a statusError if the request cannot be parsed
	method  string
	target  string
	version string
	headers []httpHeader
	body    []byte

	soap    soapRequest
	soapErr error
}

// httpHeader is a header line. The name is as the client wrote it.
type httpHeader struct{ name, value string }

// statusError is an HTTP status for the response.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("gatewaytest: HTTP status %d", int(e)) }

// readRequest reads one request. It implements the part of RFC 9112 that UPnP clients
// need: bodies must have a Content-Length. If it fails, raw contains the bytes that it
// has read.
func readRequest(in *bufio.Reader) (httpRequest, error) {
	var r httpRequest
	for {
		line, err := in.ReadSlice('\n')
		r.raw = append(r.raw, line...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull) || len(r.raw) > maxHeaderBytes:
			return r, statusError(431)
		case err != nil:
			return r, statusError(400)
		}
		text := strings.TrimRight(string(line), "\r\n")
		switch {
		case r.method != "" && text == "":
			return r, r.readBody(in)
		case r.method != "":
			name, value, ok := strings.Cut(text, ":")
			if !ok || name == "" || strings.ContainsAny(name, " \t") {
				return r, statusError(400)
			}
			r.headers = append(r.headers, httpHeader{name, strings.Trim(value, " \t")})
		case text != "":
			fields := strings.Fields(text)
			if len(fields) != 3 || !strings.HasPrefix(fields[2], "HTTP/") {
				return r, statusError(400)
			}
			r.method, r.target, r.version = fields[0], fields[1], fields[2]
		}
	}
}

// readBody reads the body of a request.
func (r *httpRequest) readBody(in io.Reader) error {
	if _, ok := r.header("Transfer-Encoding"); ok {
		return statusError(411)
	}
	length, ok := r.header("Content-Length")
	if !ok {
		if r.method == "POST" {
			return statusError(411)
		}
		return nil
	}
	n, err := strconv.ParseUint(length, 10, 32)
	switch {
	case err != nil:
		return statusError(400)
	case n > maxBodyBytes:
		return statusError(413)
	}
	body := make([]byte, n)
	got, err := io.ReadFull(in, body)
	r.raw = append(r.raw, body[:got]...)
	r.body = body[:got]
	if err != nil {
		return statusError(400)
	}
	return nil
}

// header returns the value of the first header with this name.
func (r *httpRequest) header(name string) (string, bool) {
	for _, h := range r.headers {
		if strings.EqualFold(h.name, name) {
			return h.value, true
		}
	}
	return "", false
}

// httpResponse is a response before the quirks of the HTTP server are applied.
type httpResponse struct {
	status  int
	body    []byte
	headers []httpHeader // further headers
}

// reasons are the texts in the status lines of responses (RFC 9110, section 15). Other statuses have
// the text "Error". With package net/http, which has all texts, the command starts later.
var reasons = map[int]string{
	200: "OK", 301: "Moved Permanently", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
	411: "Length Required", 412: "Precondition Failed", 413: "Request Entity Too Large", 415: "Unsupported Media Type", 431: "Request Header Fields Too Large",
	500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
}

// encodeHTTP encodes the response with the quirks of the HTTP server.
func encodeHTTP(rules quirks.Wire, response httpResponse, version string) []byte {
	chunked := rules.Chunked && version != "HTTP/1.0"
	httpVersion := cmp.Or(rules.Version, choose(rules.HTTP10, "HTTP/1.0", "HTTP/1.1"))
	reason := choose(rules.NoReason, "", " "+cmp.Or(reasons[response.status], "Error"))
	var b bytes.Buffer
	eol, sep := lineEnds(rules.LFOnly, rules.NoSpace)
	line := func(name, value string) { b.WriteString(name + sep + value + eol) }
	fmt.Fprintf(&b, "%s %d%s%s", httpVersion, response.status, reason, eol)
	line("CONTENT-TYPE", choose(bytes.HasPrefix(response.body, []byte("<html>")), "text/html", `text/xml; charset="utf-8"`))
	if response.status/100 == 3 {
		line("LOCATION", "/login.html")
	}
	line("SERVER", serverName)
	for _, h := range response.headers {
		line(h.name, h.value)
	}
	switch {
	case chunked:
		line("TRANSFER-ENCODING", "chunked")
	case !rules.NoLength:
		line("CONTENT-LENGTH", strconv.Itoa(max(0, len(response.body)+rules.LengthOff)))
	}
	if !rules.LeaveOpen {
		line("CONNECTION", "close")
	}
	b.WriteString(eol)
	if !chunked {
		b.Write(response.body)
		return b.Bytes()
	}
	for rest := response.body; len(rest) > 0; {
		n := min(len(rest), 100)
		fmt.Fprintf(&b, "%x%s%s%s", n, eol, rest[:n], eol)
		rest = rest[n:]
	}
	b.WriteString("0" + eol + eol)
	return b.Bytes()
}

// serverName is the value of the SERVER header (UPnP Device Architecture 1.1, section
// 1.2.2).
const serverName = "goforward/1 UPnP/1.1 gatewaytest/1"

// lineEnds returns the line end and the separator between the name and value of headers.
func lineEnds(lfOnly, noSpace bool) (eol, sep string) {
	return choose(lfOnly, "\n", "\r\n"), choose(noSpace, ":", ": ")
}
