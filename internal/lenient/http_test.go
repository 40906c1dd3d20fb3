package lenient

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestExchange checks that an exchange sends the request once and reports this host's
// address on the connection.
func TestExchange(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	received := make(chan string, 1)
	go func() {
		defer close(received)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b := make([]byte, 100)
		n, _ := conn.Read(b)
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
		received <- string(b[:n])
	}()
	d := Dialer{Source: netip.MustParseAddr("127.0.0.1"), Timeout: 5 * time.Second}
	got, err := d.Exchange(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), Request{Data: []byte("GET / HTTP/1.0\r\n\r\n"), Limit: 100, Root: "root"})
	if err != nil || got.Status != 200 || string(got.Body) != "hello" || got.Truncated || got.Local != d.Source {
		t.Errorf("%+v, %v", got, err)
	}
	if got := <-received; got != "GET / HTTP/1.0\r\n\r\n" {
		t.Errorf("sent %q", got)
	}
}

func TestReadResponse(t *testing.T) {
	for in, want := range map[string]Response{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world":                 {Status: 200, Body: []byte("hello"), Truncated: false},
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel":                          {Status: 200, Body: []byte("hel"), Truncated: true},
		"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<s:envelope></s:ENVELOPE >x": {Status: 200, Body: []byte("<s:envelope></s:ENVELOPE >x"), Truncated: false},
		"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<s:envelope></s:enve":        {Status: 200, Body: []byte("<s:envelope></s:enve"), Truncated: false},
		"HTTP/1.1 200\n\nhello": {Status: 200, Body: []byte("hello"), Truncated: false},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;a=b\r\n!\r\n0\r\n\r\nxx": {Status: 200, Body: []byte("hello!"), Truncated: false},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel":                                {Status: 200, Body: []byte("hel"), Truncated: true},
		"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n":                                {Status: 503, Body: nil, Truncated: true},
		"HTTP/1.1 200 OK\r\n\r\n<Envelope></Envelope>" + strings.Repeat("x", 200):                      {Status: 200, Body: []byte("<Envelope></Envelope>" + strings.Repeat("x", 80)), Truncated: false},
		"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello":                                            {Status: 204, Body: nil, Truncated: false},
		"HTTP/1.0  404":              {Status: 404, Body: nil, Truncated: true},
		"HTTP/1.1 404 x\r\nA: b\r\n": {Status: 404, Body: nil, Truncated: true},
	} {
		overruns := 0
		r := newReader(strings.NewReader(in), Request{Limit: 100, Root: "Envelope"}, func() { overruns++ })
		got, err := r.read()
		if err != nil || got.Status != want.Status || string(got.Body) != string(want.Body) || got.Truncated != want.Truncated {
			t.Errorf("%q: %d %q %v, %v", in, got.Status, got.Body, got.Truncated, err)
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
			r := newReader(conn, Request{Limit: 100, Root: "Envelope"}, func() { t.Errorf("%q: overrun", in) })
			if got, err := r.read(); err != nil || got.Truncated {
				t.Errorf("%q: %+v, %v", in, got, err)
			}
		})
	}
}

// TestReadResponseHeader checks that a response that is requested for a header ends with its
// header lines, also if the connection stays open.
func TestReadResponseHeader(t *testing.T) {
	for in, want := range map[string]Response{
		"HTTP/1.1 200 OK\r\nSID: uuid:1\r\n\r\n":                                {Status: 200, Header: "uuid:1"},
		"HTTP/1.1 200 OK\nsid :uuid:1 \nSID: 2\n\nbody":                         {Status: 200, Header: "uuid:1"},
		"HTTP/1.1 200 OK\r\nSID:\r\nSID: 2\r\nContent-Length: 9\r\n\r\n":        {Status: 200, Header: "2"},
		"HTTP/1.1 200 OK\r\nX-SID: 1\r\nSIDX: 2\r\n\r\n":                        {Status: 200},
		"HTTP/1.1 100 Continue\r\nSID: 1\r\n\r\nHTTP/1.1 412 No\r\n\r\n":        {Status: 412},
		"HTTP/1.1 204 No\r\nSID: 1\r\n\r\n":                                     {Status: 204, Header: "1"},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nSID: 1\r\n\r\nzz\r\n": {Status: 200, Header: "1"},
	} {
		synctest.Test(t, func(t *testing.T) { // fails if all goroutines are blocked
			conn, device := net.Pipe()
			defer conn.Close()
			go func() { _, _ = device.Write([]byte(in)) }()
			got, err := newReader(conn, Request{Header: "SID"}, func() { t.Errorf("%q: overrun", in) }).read()
			if err != nil || got.Status != want.Status || got.Header != want.Header || got.Body != nil || got.Truncated {
				t.Errorf("%q: %+v, %v", in, got, err)
			}
		})
	}
	if got, err := newReader(strings.NewReader("HTTP/1.1 200 OK\r\nSID: uuid:1"), Request{Header: "SID"}, nil).read(); err != nil || !got.Truncated {
		t.Errorf("a header without an end: %+v, %v", got, err)
	}
}

// TestReadResponseOverrun checks that a document without its end tag is read if the
// connection stays open after the announced length.
func TestReadResponseOverrun(t *testing.T) {
	const body = "<Envelope>"
	in := io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"+body), iotest.ErrReader(os.ErrDeadlineExceeded))
	overruns := 0
	r := newReader(in, Request{Limit: 100, Root: "Envelope"}, func() { overruns++ })
	if got, err := r.read(); err != nil || string(got.Body) != body || got.Truncated || overruns != 1 {
		t.Errorf("%+v, %v, %d overruns", got, err, overruns)
	}
}

// TestReadResponsePieces checks that the search for the end of a document takes linear time
// if the body arrives byte by byte. In any other case, the test takes half a minute.
func TestReadResponsePieces(t *testing.T) {
	for _, unit := range []string{"<", "<>", "< /", ">"} {
		body := strings.Repeat(unit, (512<<10)/len(unit))
		in := io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n\r\n"), iotest.OneByteReader(strings.NewReader(body+envelope)))
		r := newReader(in, Request{Limit: 1 << 20, Root: "Envelope"}, func() {})
		if got, err := r.read(); err != nil || string(got.Body) != body+envelope {
			t.Errorf("%q: %d bytes, %v", unit, len(got.Body), err)
		}
	}
}

var httpResponses = []string{
	"", "\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200", "HTTP/1.1 100 Continue\n\nHTTP/1.0 500\n\n<s:Envelope></s:Envelope>trailing",
	"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n" + envelope, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\r\nhello", "HTTP/1.1 500 x\r\n<Envelope></Envelope >", "HTTP/1.1 204 x\n\n",
}

// FuzzReadResponse checks that the reader stops within its limits, and that the
// result does not depend on how the bytes arrive.
func FuzzReadResponse(f *testing.F) {
	for _, seed := range httpResponses {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func(r io.Reader) (Response, error) {
			return newReader(r, Request{Limit: 1000, Root: "Envelope"}, func() {}).read()
		}
		whole, err := read(strings.NewReader(string(b)))
		if len(whole.Body) > 1001 || err == nil && (whole.Status < 200 || whole.Status > 599) {
			t.Fatalf("%+v", whole)
		}
		if err != nil && !errors.Is(err, backends.ErrMalformed) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
		slow, slowErr := read(iotest.OneByteReader(strings.NewReader(string(b))))
		if (err == nil) != (slowErr == nil) || slow.Status != whole.Status {
			t.Fatalf("at once %+v, %v; byte by byte %+v, %v", whole, err, slow, slowErr)
		}
	})
}

// TestEndTag checks which tags end a document.
func TestEndTag(t *testing.T) {
	t.Parallel()
	for tag, want := range map[string]bool{
		"/s:Envelope": true, "/Envelope": true, " /\ts:ENVELOPE ": true, "/ SOAP-ENV:Envelope": true, "/s:Envelope/": true, "/Envelope xmlns='x'": true,
		"s:Envelope": false, "/s:Envelopes": false, "/s:Body": false, "/Envelope:Body": false, "": false, "/": false, "/:": false, "!/Envelope": false,
	} {
		if got := isEndTag([]byte(tag), "Envelope"); got != want {
			t.Errorf("%q: %v, want %v", tag, got, want)
		}
	}
}
