package upnp

import (
	"bufio"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rawServer is a device on loopback that responds with exactly the bytes that a
// test gives it.
type rawServer struct {
	addr netip.AddrPort

	mu       sync.Mutex
	requests []string
}

// serveRaw starts a server that stops when the test ends. respond gets each
// complete request, its number from 0, and its connection, which is closed
// afterwards.
func serveRaw(t *testing.T, respond func(conn net.Conn, n int, request string)) *rawServer {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				request, n := s.read(conn)
				respond(conn, n, request)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return s
}

var contentLength = regexp.MustCompile(`\r\nContent-Length: (\d+)\r\n`)

func (s *rawServer) read(conn net.Conn) (string, int) {
	r := bufio.NewReader(conn)
	var request strings.Builder
	for !strings.HasSuffix(request.String(), "\r\n\r\n") {
		b, err := r.ReadByte()
		if err != nil {
			break
		}
		request.WriteByte(b)
	}
	if m := contentLength.FindStringSubmatch(request.String()); m != nil {
		for n, _ := strconv.Atoi(m[1]); n > 0; n-- {
			b, err := r.ReadByte()
			if err != nil {
				break
			}
			request.WriteByte(b)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, request.String())
	return request.String(), len(s.requests) - 1
}

func (s *rawServer) received() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// respondWith returns a handler that writes one response after another, and repeats
// the last.
func respondWith(responses ...string) func(net.Conn, int, string) {
	return func(conn net.Conn, n int, _ string) {
		_, _ = conn.Write([]byte(responses[min(n, len(responses)-1)]))
	}
}

// respondAndWait returns a handler that writes a response and keeps the connection
// open until the client closes it.
func respondAndWait(a string) func(net.Conn, int, string) {
	return func(conn net.Conn, _ int, _ string) {
		_, _ = conn.Write([]byte(a))
		waitClosed(conn)
	}
}

func waitClosed(conn net.Conn) {
	var b [64]byte
	for {
		if _, err := conn.Read(b[:]); err != nil {
			return
		}
	}
}

const ip1 = "urn:schemas-upnp-org:service:WANIPConnection:1"

// client returns a client of a service on the server.
func (s *rawServer) client(t *testing.T, serviceType string, config ClientConfig) *Client {
	t.Helper()
	c, err := NewClient(Service{Type: serviceType, ControlURL: "http://" + s.addr.String() + "/ctl/IPConn"}, config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// reader returns a reader of the table of a service on the server.
func (s *rawServer) reader(t *testing.T, serviceType string) *tableReader {
	t.Helper()
	b, err := New(Config{Gateway: s.addr.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b.newTableReader(&gateway{Gateway: Gateway{Device: &Device{Host: s.addr.Addr()}}}, s.client(t, serviceType, ClientConfig{}))
}

// ok returns a simple HTTP response with the body.
func ok(body string) string { return status(200, body) }

func status(code int, body string) string {
	return "HTTP/1.1 " + strconv.Itoa(code) + " Text\r\nContent-Type: text/xml; charset=\"utf-8\"\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n" + body
}

// soapResponse returns the body of a response to an action of WANIPConnection:1.
func soapResponse(action, arguments string) string {
	return `<?xml version="1.0"?>` + "\r\n" +
		`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">` +
		`<s:Body><u:` + action + `Response xmlns:u="` + ip1 + `">` + arguments + `</u:` + action + `Response></s:Body></s:Envelope>`
}
