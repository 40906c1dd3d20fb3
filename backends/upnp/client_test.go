package upnp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

var testMapping = PortMapping{
	ExternalPort: 6881, Protocol: backends.UDP, Internal: netip.MustParseAddrPort("192.168.1.10:6881"),
	Enabled: true, Description: "gomap", Lease: time.Hour,
}

// testMappingBody is the body of an AddPortMapping request for testMapping, in its
// standard form.
const testMappingBody = `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:AddPortMapping xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1"><NewRemoteHost></NewRemoteHost><NewExternalPort>6881</NewExternalPort><NewProtocol>UDP</NewProtocol><NewInternalPort>6881</NewInternalPort><NewInternalClient>192.168.1.10</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>gomap</NewPortMappingDescription><NewLeaseDuration>3600</NewLeaseDuration></u:AddPortMapping></s:Body></s:Envelope>`

func TestRequestBytes(t *testing.T) {
	s := serveRaw(t, respondWith(status(405, "<html>no</html>"), ok(soapResponse("AddPortMapping", ""))))
	if err := s.client(t, ip1, ClientConfig{}).AddPortMapping(t.Context(), testMapping); err != nil {
		t.Fatal(err)
	}
	length := strconv.Itoa(len(testMappingBody))
	want := []string{
		"POST /ctl/IPConn HTTP/1.1\r\nHost: " + s.addr.String() + "\r\nUser-Agent: goforward UPnP/1.1\r\n" +
			"Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPACTION: \"" + ip1 + "#AddPortMapping\"\r\n" +
			"Content-Length: " + length + "\r\nConnection: close\r\n\r\n" + testMappingBody,
		"POST /ctl/IPConn HTTP/1.0\r\nHost: " + s.addr.String() + "\r\n" +
			"Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"" + ip1 + "#AddPortMapping\"\r\n" +
			"Content-Length: " + length + "\r\n\r\n" + testMappingBody,
	}
	if got := s.received(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("sent\n%q\nwant\n%q", got, want)
	}
}

// TestFaults checks that fault 725 is recognised in all forms that devices send.
func TestFaults(t *testing.T) {
	t.Parallel()
	const plain = `<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>725</errorCode><errorDescription>OnlyPermanentLeasesSupported</errorDescription></UPnPError></detail></s:Fault>`
	envelope := func(prefix, inner string) string {
		return `<` + prefix + `:Envelope xmlns:` + prefix + `="http://schemas.xmlsoap.org/soap/envelope/"><` + prefix + `:Body>` + inner + `</` + prefix + `:Body></` + prefix + `:Envelope>`
	}
	standard := envelope("s", plain)
	replaced := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(standard) }
	for name, a := range map[string]string{
		"standard":             status(500, standard),
		"SOAP-ENV":             status(500, envelope("SOAP-ENV", strings.ReplaceAll(plain, "s:", "SOAP-ENV:"))),
		"SOAP":                 status(500, envelope("SOAP", strings.ReplaceAll(plain, "s:", "SOAP:"))),
		"camel case":           status(500, replaced("faultcode", "faultCode", "faultstring", "faultString")),
		"capitals":             status(500, strings.ToUpper(standard)),
		"prefixed code":        status(500, replaced("errorCode>", "u:errorCode>")),
		"spaces in the code":   status(500, replaced(">725<", "> 725\n <")),
		"sign in the code":     status(500, replaced(">725<", ">+725<")),
		"text after the code":  status(500, replaced(">725<", ">725 (OnlyPermanentLeasesSupported)<")),
		"glued namespace":      status(500, replaced("<UPnPError xmlns", "<UPnPErrorxmlns")),
		"only a glued error":   status(500, `<UPnPErrorxmlns="x"><errorCode>725</errorCode></UPnPError>`),
		"invalid markup":       status(500, "<!DOCTYPE x [<? echo ?>]><!-- a -- b -->"+replaced("<s:Fault>", "< s:Fault a=\"<\" a=\"x>]]>", "</s:Fault>", "< /s:Fault>")),
		"HTTP1.1":              "HTTP1.1 500 X\r\n\r\n" + standard,
		"http/1.1":             "http/1.1 500 X\r\n\r\n" + standard,
		"Latin-1":              status(500, "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>"+replaced("OnlyPermanent", "Nur f\xfcr immer")),
		"bad UTF-8":            status(500, "<?xml version=\"1.0\" encoding=\"utf-8\"?>"+replaced("OnlyPermanent", "f\xfcr")),
		"GBK":                  status(500, "<?xml version=\"1.0\" encoding=\"GBK\"?>"+replaced("OnlyPermanent", "\xd3\xc0\xbe\xc3")),
		"byte order mark":      status(500, "\ufeff<?xml version=\"1.0\"?>"+standard),
		"leading space":        status(500, "\r\n\r\n <?xml version=\"1.0\"?>"+standard),
		"XML 1.1":              status(500, "<?xml version=\"1.1\"?>"+standard),
		"NUL tail":             status(500, standard+"\x00\x00"),
		"control characters":   status(500, replaced("OnlyPermanent", "\x01\x1b[2J&#0;&#x1b;")),
		"status 200":           status(200, standard),
		"status 400":           status(400, standard),
		"no length":            "HTTP/1.1 500 Internal Server Error\r\n\r\n" + standard,
		"no space":             fmt.Sprintf("HTTP/1.1 500 Internal Server Error\r\nCONTENT-LENGTH:%d\r\n\r\n%s", len(standard), standard),
		"no reason":            fmt.Sprintf("HTTP/1.1 500\r\nContent-Length: %d\r\n\r\n%s", len(standard), standard),
		"HTTP/1.0":             "HTTP/1.0 500 Internal Server Error\r\n\r\n" + standard,
		"LF only":              fmt.Sprintf("HTTP/1.1 500 X\nContent-Length: %d\n\n%s", len(standard), standard),
		"no blank line":        "HTTP/1.1 500 X\r\nContent-Type: text/xml\r\n" + standard,
		"folded":               fmt.Sprintf("HTTP/1.1 500 X\r\nServer: a\r\n b: c\r\nContent-Length:\r\n %d\r\n\r\n%s", len(standard), standard),
		"length too short":     "HTTP/1.1 500 X\r\nContent-Length: 100\r\n\r\n" + standard,
		"length too long":      "HTTP/1.1 500 X\r\nContent-Length: 10000\r\n\r\n" + standard,
		"invalid length":       "HTTP/1.1 500 X\r\nContent-Length: -1\r\n\r\n" + standard,
		"chunked":              "HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(standard, 7, "\r\n"),
		"chunked, LF, trailer": "HTTP/1.1 500 X\nTransfer-Encoding: Chunked\n\n" + chunked(standard, 64, "\n") + "X: y\n\n",
		"not chunked":          "HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n" + standard,
		"after 100":            "HTTP/1.1 100 Continue\r\n\r\n" + status(500, standard),
		"after blank lines":    "\r\n\r\n" + status(500, standard),
		"cut after the code":   status(500, standard[:strings.Index(standard, "<errorDescription>")]),
		"unescaped ampersand":  status(500, replaced("OnlyPermanent", "R&D <br>")),
		"CDATA and comment":    status(500, replaced(">725<", "><!-- no --><![CDATA[725]]><")),
		"no envelope":          status(500, plain),
		"missing end tags":     status(500, replaced("</detail>", "", "</UPnPError>", "")),
	} {
		for connection, serve := range map[string]func(net.Conn, int, string){"closed": respondWith(a), "left open": respondAndWait(a)} {
			t.Run(name+", "+connection, func(t *testing.T) {
				t.Parallel()
				s := serveRaw(t, serve)
				err := s.client(t, ip1, ClientConfig{}).AddPortMapping(t.Context(), testMapping)
				var f *Fault
				if !errors.As(err, &f) || f.Code != OnlyPermanentLeasesSupported || f.Action != "AddPortMapping" {
					t.Fatalf("%v, want fault 725", err)
				}
				if !errors.Is(err, backends.ErrUnsupported) || errors.Is(err, backends.ErrNoReply) {
					t.Errorf("%v has the wrong kind", err)
				}
				if strings.ContainsFunc(f.Description, func(r rune) bool { return r < ' ' }) {
					t.Errorf("control characters in %q", f.Description)
				}
			})
		}
	}
}

func chunked(s string, size int, eol string) string {
	var b strings.Builder
	for ; s != ""; s = s[min(size, len(s)):] {
		fmt.Fprintf(&b, "%x;x=y%s%s%s", min(size, len(s)), eol, s[:min(size, len(s))], eol)
	}
	return b.String() + "0" + eol
}

// TestSuccesses checks that a success is recognised in all forms that devices send.
func TestSuccesses(t *testing.T) {
	body := soapResponse("AddPortMapping", "")
	for name, a := range map[string]string{
		"standard":       ok(body),
		"empty element":  ok(strings.ReplaceAll(body, `"></u:AddPortMappingResponse>`, `"/>`)),
		"status 500":     status(500, body),
		"lower case":     ok(strings.ToLower(body)),
		"empty":          "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"blank":          ok("\r\n\x00"),
		"empty, closed":  "HTTP/1.1 200 OK\r\n\r\n",
		"no content":     "HTTP/1.1 204 No Content\r\n\r\n",
		"empty envelope": ok(`<s:Envelope xmlns:s="x"><s:Body></s:Body></s:Envelope>`),
	} {
		s := serveRaw(t, respondWith(a))
		if err := s.client(t, ip1, ClientConfig{}).AddPortMapping(t.Context(), testMapping); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMalformedResponses checks that a response that is neither a success nor a
// fault is reported as ErrMalformed.
func TestMalformedResponses(t *testing.T) {
	body := soapResponse("AddPortMapping", "")
	for name, tt := range map[string]struct {
		response string
		status   int // of the HTTPError, or 0 if there is none
		requests int // the number of requests
	}{
		"login page":                 {ok("<html><body><AddPortMapping/><form>Password</form></body></html>"), 0, 1},
		"response of another action": {ok(soapResponse("GetStatusInfo", "")), 0, 1},
		"cut":                        {ok(body[:len(body)-50]), 0, 1},
		"cut at the start":           {"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n", 0, 1},
		"not HTTP":                   {"SSH-2.0-dropbear\r\n", 0, 1},
		"ICY":                        {"ICY 200 OK\r\n\r\n" + body, 0, 1},
		"code without a number":      {status(500, fault("")), 0, 1},
		"code out of range":          {status(500, fault("99999999999")), 0, 1},
		"status 99":                  {"HTTP/1.1 99 x\r\n\r\n", 0, 1},
		"redirect":                   {"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n", 302, 1},
		"not found":                  {status(404, "<html>not found"), 404, 1},
		"bad request":                {status(400, ""), 400, 2},
		"not implemented":            {status(501, "no"), 501, 2},
		"bare 500":                   {status(500, ""), 500, 1},
		"bad chunk":                  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 0, 1},
		"huge chunk":                 {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n", 0, 1},
		"long header":                {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 5000), 0, 1},
		"deep":                       {ok(strings.Repeat("<a>", 40) + body), 0, 1},
		"many elements":              {ok(strings.Repeat("<a/>", 400) + body), 0, 1},
		"huge body":                  {"HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 200<<10), 0, 1},
	} {
		s := serveRaw(t, respondWith(tt.response))
		err := s.client(t, ip1, ClientConfig{}).AddPortMapping(t.Context(), testMapping)
		var h *HTTPError
		if !errors.Is(err, backends.ErrMalformed) || errors.As(err, &h) != (tt.status != 0) || h != nil && h.Status != tt.status {
			t.Errorf("%s: %v, want ErrMalformed, HTTP status %d", name, err, tt.status)
		}
		if n := len(s.received()); n != tt.requests {
			t.Errorf("%s: %d requests, want %d", name, n, tt.requests)
		}
		if Moved(err) != (tt.status == 404) {
			t.Errorf("%s: Moved returned %v", name, Moved(err))
		}
	}
}

// TestNoReply checks connections that are refused, reset, closed or silent. The
// error wraps ErrNoReply and the cause, and is not mistaken for the end of the
// caller's context.
func TestNoReply(t *testing.T) {
	reset := func(conn net.Conn, _ int, _ string) { _ = conn.(*net.TCPConn).SetLinger(0) }
	for name, serve := range map[string]func(net.Conn, int, string){
		"reset": reset, "closed": func(net.Conn, int, string) {},
		"silent": respondAndWait(""), "half": respondAndWait("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<s:Env"),
	} {
		s := serveRaw(t, serve)
		err := s.client(t, ip1, ClientConfig{Timeout: 100 * time.Millisecond}).AddPortMapping(t.Context(), testMapping)
		if !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) || Moved(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The timeout expires while connecting. Package net reports this as the end of
	// a context.
	s := serveRaw(t, respondAndWait(""))
	err := s.client(t, ip1, ClientConfig{Timeout: 1}).AddPortMapping(t.Context(), testMapping)
	if !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connecting: %v", err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// If another process requests a free port within these microseconds, it gets
	// this one with a probability of 1 in 28 000. The same holds for the client,
	// which would then connect to itself.
	closed := &rawServer{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	l.Close()
	err = closed.client(t, ip1, ClientConfig{}).AddPortMapping(t.Context(), testMapping)
	if !errors.Is(err, backends.ErrNoReply) || !errors.Is(err, syscall.ECONNREFUSED) || !Moved(err) {
		t.Errorf("refused: %v", err)
	}
}

// TestEndlessResponse checks that reading a response without end stops at its limit
// or timeout.
func TestEndlessResponse(t *testing.T) {
	for name, tt := range map[string]struct{ start, more string }{
		"body":        {"HTTP/1.1 200 OK\r\n\r\n", "<a>"},
		"chunks":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"},
		"header":      {"HTTP/1.1 200 OK\r\n", "A: b\r\n"},
		"line":        {"HTTP/1.1 200 OK\r\n", "AAAAAAAA"},
		"interim":     {"", "HTTP/1.1 100 Continue\r\n\r\n"},
		"blank lines": {"", "\r\n"},
		"chunk lines": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "\r\n"},
	} {
		s := serveRaw(t, func(conn net.Conn, _ int, _ string) {
			more := []byte(strings.Repeat(tt.more, 100))
			for _, err := conn.Write([]byte(tt.start)); err == nil; {
				_, err = conn.Write(more)
			}
		})
		if err := s.client(t, ip1, ClientConfig{}).AddPortMapping(t.Context(), testMapping); !errors.Is(err, backends.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}

func TestContextCause(t *testing.T) {
	cause := errors.New("test cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	s := serveRaw(t, func(conn net.Conn, _ int, _ string) {
		cancel(cause)
		waitClosed(conn)
	})
	c := s.client(t, ip1, ClientConfig{})
	for range 2 { // during a request, and before one
		if err := c.AddPortMapping(ctx, testMapping); !errors.Is(err, cause) || errors.Is(err, backends.ErrNoReply) {
			t.Errorf("%v, want the context's cause", err)
		}
	}
}

// TestAlternateControlURLs checks that the client tries the other interpretations
// of a control URL that returns 404, and keeps the one that works.
func TestAlternateControlURLs(t *testing.T) {
	s := serveRaw(t, func(conn net.Conn, _ int, request string) {
		a := status(404, "")
		if strings.HasPrefix(request, "POST /ctl ") {
			a = ok(soapResponse("AddPortMapping", ""))
		}
		_, _ = conn.Write([]byte(a))
	})
	base := "http://" + s.addr.String()
	c, err := NewClient(Service{
		Type: ip1, ControlURL: base + "/igd/ctl", alternates: [maxControlURLs - 1]string{base + "/ctl"},
	}, ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.AddPortMapping(t.Context(), testMapping); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.Service().ControlURL; got != base+"/ctl" {
		t.Errorf("the client kept %q", got)
	}
	if n := len(s.received()); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

func TestNewClient(t *testing.T) {
	good := Service{Type: ip1, ControlURL: "http://127.0.0.1:1/x"}
	for name, invalidate := range map[string]func(*Service, *ClientConfig){
		"no type":         func(s *Service, _ *ClientConfig) { s.Type = "" },
		"quote in type":   func(s *Service, _ *ClientConfig) { s.Type += `"` },
		"newline in type": func(s *Service, _ *ClientConfig) { s.Type += "\r\nX: y" },
		"no URL":          func(s *Service, _ *ClientConfig) { s.ControlURL = "" },
		"host name":       func(s *Service, _ *ClientConfig) { s.ControlURL = "http://localhost:1/x" },
		"https":           func(s *Service, _ *ClientConfig) { s.ControlURL = "https://127.0.0.1:1/x" },
		"credentials":     func(s *Service, _ *ClientConfig) { s.ControlURL = "http://a:b@127.0.0.1:1/x" },
		"port 0":          func(s *Service, _ *ClientConfig) { s.ControlURL = "http://127.0.0.1:0/x" },
		"port 65536":      func(s *Service, _ *ClientConfig) { s.ControlURL = "http://127.0.0.1:65536/x" },
		"long":            func(s *Service, _ *ClientConfig) { s.ControlURL += strings.Repeat("x", 2000) },
		"timeout":         func(_ *Service, c *ClientConfig) { c.Timeout = -1 },
		"family":          func(_ *Service, c *ClientConfig) { c.Source = netip.IPv6Loopback() },
	} {
		s, c := good, ClientConfig{}
		invalidate(&s, &c)
		if _, err := NewClient(s, c); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := NewClient(good, ClientConfig{Source: netip.MustParseAddr("::ffff:127.0.0.1")}); err != nil {
		t.Error(err)
	}
}

// TestSource checks that connections start from the configured address and
// interface.
func TestSource(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("this system has one loopback address only, or another loopback interface name")
	}
	from := make(chan string, 1)
	s := serveRaw(t, func(conn net.Conn, _ int, _ string) {
		from <- conn.RemoteAddr().(*net.TCPAddr).IP.String()
		_, _ = conn.Write([]byte(ok(soapResponse("AddPortMapping", ""))))
	})
	c := s.client(t, ip1, ClientConfig{Interface: "lo", Source: netip.MustParseAddr("127.0.0.3")})
	if err := c.AddPortMapping(t.Context(), testMapping); err != nil {
		t.Fatal(err)
	}
	if got := <-from; got != "127.0.0.3" {
		t.Errorf("connected from %s", got)
	}
	c = s.client(t, ip1, ClientConfig{Interface: "none0"})
	if err := c.AddPortMapping(t.Context(), testMapping); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("with an interface that does not exist: %v", err)
	}
}

var actionName = regexp.MustCompile(`(?i)SOAPACTION: "[^"#]*#(\w+)"`)

// actions returns the actions of all requests that the server received, in order.
func (s *rawServer) actions() []string {
	var names []string
	for _, r := range s.received() {
		names = append(names, actionName.FindStringSubmatch(r)[1])
	}
	return names
}

// serveActions starts a server that responds to every action with success and
// without results.
func serveActions(t *testing.T) *rawServer {
	return serveRaw(t, func(conn net.Conn, _ int, request string) {
		_, _ = conn.Write([]byte(ok(soapResponse(actionName.FindStringSubmatch(request)[1], ""))))
	})
}

// enterNow enters the queue of a device and fails the test if it has to wait.
func enterNow(t *testing.T, at netip.AddrPort) (leave func()) {
	t.Helper()
	leave, err := enterQueue(t.Context(), &requestQueues, at)
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

// TestRequestOrder checks that all Clients of one address and port send their
// requests one after another: the most urgent first, and the oldest first among
// equals.
func TestRequestOrder(t *testing.T) {
	server, other := serveActions(t), serveActions(t)
	synctest.Test(t, func(t *testing.T) {
		leave := enterNow(t, server.addr)
		for _, r := range []struct {
			action   string
			priority ctxsync.Priority
		}{
			{"Check", ctxsync.Check},
			{"Renewal", ctxsync.Renewal},
			{"Delete", ctxsync.Delete},
			{"First", ctxsync.Foreground},
			{"Second", ctxsync.Foreground},
		} {
			c := server.client(t, ip1, ClientConfig{})
			go func() { _, _ = c.perform(ctxsync.WithPriority(t.Context(), r.priority), r.action, nil) }()
			synctest.Wait()
		}
		if got := server.actions(); len(got) != 0 {
			t.Errorf("sent %v while another request is in flight", got)
		}
		if _, err := other.client(t, ip1, ClientConfig{}).perform(t.Context(), "Other", nil); err != nil {
			t.Errorf("to another port: %v", err)
		}
		leave()
		synctest.Wait()
		if got, want := server.actions(), []string{"First", "Second", "Delete", "Renewal", "Check"}; !slices.Equal(got, want) {
			t.Errorf("order %v, want %v", got, want)
		}
	})
}

// TestCancelledInQueue checks that a request whose context ends while it waits is
// not sent, and leaves the queue.
func TestCancelledInQueue(t *testing.T) {
	server := serveActions(t)
	synctest.Test(t, func(t *testing.T) {
		leave := enterNow(t, server.addr)
		c := server.client(t, ip1, ClientConfig{})
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("test cause")
		ended := make(chan error, 1)
		go func() {
			_, err := c.perform(ctx, "GivenUp", nil)
			ended <- err
		}()
		synctest.Wait()
		cancel(cause)
		if err := <-ended; !errors.Is(err, cause) {
			t.Errorf("error %v, want the cause", err)
		}
		leave()
		enterNow(t, server.addr)()
		if got := server.actions(); len(got) != 0 {
			t.Errorf("sent %v", got)
		}
	})
}

// TestCancelledRequestIsReset checks that a cancelled request resets its
// connection, so that the kernel does not deliver the rest of the request when a
// broken link recovers. A request that got its response closes the connection
// normally.
func TestCancelledRequestIsReset(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ends := make(chan error, 2)
	s := serveRaw(t, func(conn net.Conn, n int, _ string) {
		if n == 0 {
			_, _ = conn.Write([]byte(ok(soapResponse("GetExternalIPAddress", elements("NewExternalIPAddress", "45.45.45.1")))))
		} else {
			cancel()
		}
		_, err := conn.Read(make([]byte, 1))
		ends <- err
	})
	c := s.client(t, ip1, ClientConfig{})
	if _, err := c.ExternalAddr(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-ends; errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection of the completed request ended with %v", err)
	}
	if _, err := c.ExternalAddr(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("ExternalAddr: %v", err)
	}
	if err := <-ends; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection of the cancelled request ended with %v, want a reset", err)
	}
}
