package upnp

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
)

// TestTruncatedResponse checks that a truncated response is never mistaken for a
// complete one.
func TestTruncatedResponse(t *testing.T) {
	whole := ok(soapResponse("GetExternalIPAddress", elements("NewExternalIPAddress", "203.0.113.7")))
	call := soapCall{service: ip1, action: "GetExternalIPAddress"}
	for n := range len(whole) {
		r := responseReader{r: bufio.NewReader(strings.NewReader(whole[:n])), limit: 1 << 20, root: "Envelope", onOverrun: func() {}}
		resp, err := r.read()
		if err != nil {
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("%d bytes: %v", n, err)
			}
			continue
		}
		envelope, _, err := call.normalise(resp)
		if err != nil || envelope != nil && !strings.Contains(string(envelope), ">203.0.113.7<") {
			t.Errorf("%d bytes: %q, %v", n, envelope, err)
		}
		noOutputCall := soapCall{service: ip1, action: "AddPortMapping", noOutput: true}
		if envelope, _, _ := noOutputCall.normalise(resp); envelope != nil {
			t.Errorf("%d bytes count as a success: %q", n, envelope)
		}
	}
}

func TestReadResponse(t *testing.T) {
	for in, want := range map[string]response{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world":                 {200, []byte("hello"), false},
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel":                          {200, []byte("hel"), true},
		"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<s:envelope></s:ENVELOPE >x": {200, []byte("<s:envelope></s:ENVELOPE >x"), false},
		"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<s:envelope></s:enve":        {200, []byte("<s:envelope></s:enve"), false},
		"HTTP/1.1 200\n\nhello": {200, []byte("hello"), false},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;a=b\r\n!\r\n0\r\n\r\nxx": {200, []byte("hello!"), false},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel":                                {200, []byte("hel"), true},
		"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n":                                {503, nil, true},
		"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello":                                            {204, nil, false},
		"HTTP/1.0  404":              {404, nil, true},
		"HTTP/1.1 404 x\r\nA: b\r\n": {404, nil, true},
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
