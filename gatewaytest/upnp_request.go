package gatewaytest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// The bounds of requests.
const (
	maxHeader = 16 << 10
	maxBody   = 64 << 10
)

// httpRequest is a request as it arrived.
type httpRequest struct {
	raw     []byte
	source  netip.AddrPort
	base    string // of the server that was asked
	err     error  // a statusError if it cannot be read
	method  string
	target  string
	version string
	headers []httpHeader
	body    []byte

	soap    soapRequest
	soapErr error
}

// httpHeader is a header line, the name as it was written.
type httpHeader struct{ name, value string }

// statusError is a status to answer with.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("gatewaytest: HTTP status %d", int(e)) }

// readRequest reads one request (RFC 9112, as far as clients of UPnP need it:
// bodies have a Content-Length). What was read before an error is in raw.
func readRequest(in *bufio.Reader) (httpRequest, error) {
	var r httpRequest
	for {
		line, err := in.ReadSlice('\n')
		r.raw = append(r.raw, line...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull) || len(r.raw) > maxHeader:
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

func (r *httpRequest) readBody(in io.Reader) error {
	if _, ok := r.header("Transfer-Encoding"); ok {
		return statusError(411)
	}
	told, ok := r.header("Content-Length")
	if !ok {
		if r.method == "POST" {
			return statusError(411)
		}
		return nil
	}
	n, err := strconv.ParseUint(told, 10, 32)
	switch {
	case err != nil:
		return statusError(400)
	case n > maxBody:
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

// header finds the first of the name.
func (r *httpRequest) header(name string) (string, bool) {
	for _, h := range r.headers {
		if strings.EqualFold(h.name, name) {
			return h.value, true
		}
	}
	return "", false
}
