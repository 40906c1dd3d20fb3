package reflector

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/natforward/goforward/internal/dialback"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	nonce = "AAECAwQFBgcICQoLDA0ODw"
	want  = "EBESExQVFhcYGRobHB0eHw"
	token = "0123456789abcdef"
	// requester is the source of the requests of most tests, and other a public address that
	// the reflector must not connect to.
	requester, other = "45.45.45.9", "45.45.45.66"
)

// loopback is a configuration that serves the hosts of tests with real sockets.
var loopback = Config{Allow: prefixes("127.0.0.0/8", "::1/128")}

// newHandler returns a handler. If dial is not nil, it makes the calls, and this host has no address.
func newHandler(t testing.TB, config Config, dial func(c dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error)) *Handler {
	t.Helper()
	h, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if dial != nil {
		h.dial = dial
		h.isLocal = func(netip.Addr) bool { return false }
	}
	return h
}

// source is the source of all calls.
var source = netip.MustParseAddrPort("45.45.45.2:50000")

// echo is a call to a port that answers at once.
func echo(_ dialback.Call, _ context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
	announce(source)
	return dialback.Echoed, 12345 * time.Microsecond, nil
}

// noAnswer is a call to a port that does not answer.
func noAnswer(_ dialback.Call, ctx context.Context, announce func(netip.AddrPort)) (dialback.Outcome, time.Duration, error) {
	announce(source)
	<-ctx.Done()
	return dialback.TimedOut, 0, nil
}

// tcpProbe is a probe with nonces.
func tcpProbe(port uint16) string { return probeOf("tcp", port) }

func probeOf(protocol string, port uint16) string {
	return fmt.Sprintf(`{"protocol":%q,"port":%d,"nonce":%q,"want":%q}`, protocol, port, nonce, want)
}

func body(probes ...string) string { return `{"v":1,"probes":[` + strings.Join(probes, ",") + `]}` }

// post returns a request with a body, from requester.
func post(body string, header ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, dialback.ProbePath, strings.NewReader(body))
	r.RemoteAddr = requester + ":40000"
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func from(r *http.Request, addr string) *http.Request {
	r.RemoteAddr = net.JoinHostPort(addr, "40000")
	return r
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// lines returns the lines of a reply.
func lines(t testing.TB, reply *bytes.Buffer) (out []dialback.Line) {
	t.Helper()
	for text := range strings.Lines(reply.String()) {
		var line dialback.Line
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		out = append(out, line)
	}
	return out
}

// refusalOf returns the text of a refusal, and checks that it is JSON.
func refusalOf(t testing.TB, w *httptest.ResponseRecorder) string {
	t.Helper()
	var no dialback.Refusal
	if err := json.Unmarshal(w.Body.Bytes(), &no); err != nil || no.Error == "" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("status %d with %q, %v", w.Code, w.Body, err)
	}
	return no.Error
}

// start serves on loopback until the test ends, and returns the endpoint.
func start(t testing.TB, h *Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(ctx, ln, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// isSent waits as long as a call does between its announcement and its first packet, and reports whether the
// packet is sent.
func isSent(ctx context.Context) bool {
	select {
	case <-time.After(100 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}
