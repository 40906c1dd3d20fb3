package upnp

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/natforward/goforward/backends"
)

// TestTruncatedResponse checks that a truncated response is never mistaken for a
// complete one.
func TestTruncatedResponse(t *testing.T) {
	whole := ok(soapResponse("GetExternalIPAddress", elements("NewExternalIPAddress", "203.0.113.7")))
	for n := range len(whole) {
		r := responseReader{r: bufio.NewReader(strings.NewReader(whole[:n])), limit: 1 << 20, root: "Envelope", onOverrun: func() {}}
		resp, err := r.read()
		if err != nil {
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("%d bytes: %v", n, err)
			}
			continue
		}
		out, err := readOutput("GetExternalIPAddress", resp)
		if err == nil && out.value("NewExternalIPAddress") != "203.0.113.7" || err != nil && !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%d bytes: %+v, %v", n, out, err)
		}
		if out, err := readOutput("AddPortMapping", resp); err == nil {
			t.Errorf("%d bytes count as a success: %+v", n, out)
		}
	}
}

func TestReadResponse(t *testing.T) {
	for in, want := range map[string]response{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world":                 {status: 200, body: []byte("hello"), truncated: false},
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel":                          {status: 200, body: []byte("hel"), truncated: true},
		"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<s:envelope></s:ENVELOPE >x": {status: 200, body: []byte("<s:envelope></s:ENVELOPE >x"), truncated: false},
		"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<s:envelope></s:enve":        {status: 200, body: []byte("<s:envelope></s:enve"), truncated: false},
		"HTTP/1.1 200\n\nhello": {status: 200, body: []byte("hello"), truncated: false},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;a=b\r\n!\r\n0\r\n\r\nxx": {status: 200, body: []byte("hello!"), truncated: false},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel":                                {status: 200, body: []byte("hel"), truncated: true},
		"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n":                                {status: 503, body: nil, truncated: true},
		"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello":                                            {status: 204, body: nil, truncated: false},
		"HTTP/1.0  404":              {status: 404, body: nil, truncated: true},
		"HTTP/1.1 404 x\r\nA: b\r\n": {status: 404, body: nil, truncated: true},
	} {
		overruns := 0
		r := responseReader{r: bufio.NewReader(strings.NewReader(in)), limit: 100, root: "Envelope", onOverrun: func() { overruns++ }}
		got, err := r.read()
		if err != nil || got.status != want.status || string(got.body) != string(want.body) || got.truncated != want.truncated {
			t.Errorf("%q: %d %q %v, %v", in, got.status, got.body, got.truncated, err)
		}
		if tooLong := strings.Contains(in, "envelope"); tooLong != (overruns == 1) {
			t.Errorf("%q: onOverrun was called %d times", in, overruns)
		}
	}
}

// TestReadResponseLeftOpen checks that the reader does not wait for bytes after the end
// of a response.
func TestReadResponseLeftOpen(t *testing.T) {
	const header = "HTTP/1.1 200 OK\r\n"
	for _, in := range []string{
		header + "Content-Length: 0\r\n\r\n", header + "Content-Length: 2\r\n\r\nab", header + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
		header + "\r\n<Envelope></Envelope>", header + "\r\n< s:Envelope>< / s:Envelope >", "HTTP/1.1 204 No\r\n\r\n",
	} {
		synctest.Test(t, func(t *testing.T) { // fails if all goroutines are blocked
			conn, device := net.Pipe()
			defer conn.Close()
			go func() { _, _ = device.Write([]byte(in)) }()
			r := responseReader{r: bufio.NewReader(conn), limit: 100, root: "Envelope", onOverrun: func() { t.Errorf("%q: overrun", in) }}
			if got, err := r.read(); err != nil || got.truncated {
				t.Errorf("%q: %+v, %v", in, got, err)
			}
		})
	}
}

// TestReadResponseOverrun checks that a document without its end tag is read if the
// connection stays open after the announced length.
func TestReadResponseOverrun(t *testing.T) {
	const body = "<Envelope>"
	in := io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"+body), iotest.ErrReader(os.ErrDeadlineExceeded))
	overruns := 0
	r := responseReader{r: bufio.NewReader(in), limit: 100, root: "Envelope", onOverrun: func() { overruns++ }}
	if got, err := r.read(); err != nil || string(got.body) != body || got.truncated || overruns != 1 {
		t.Errorf("%+v, %v, %d overruns", got, err, overruns)
	}
}
