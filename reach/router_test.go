package reach_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/internal/freeport"
	"github.com/natforward/goforward/reach"
)

// routerTimeout is longer than all waits of the prober together.
const routerTimeout = 30 * time.Second

var loopback = netip.MustParseAddr("127.0.0.1")

// startRouter starts a gateway.
func startRouter(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// freeTarget returns a free port of this host as the target of a gateway.
func freeTarget(t *testing.T, gw *gatewaytest.Gateway, p backends.Protocol) reach.Target {
	t.Helper()
	internal, err := freeport.UDP()
	if err != nil {
		t.Fatal(err)
	}
	return reach.Target{Protocol: p, Internal: internal, Gateway: loopback, UPnPURL: gw.UPnP().DescriptionURL(), SSDP: gw.SSDP()}
}

// openPort opens the port of a target.
func openPort(t *testing.T, target reach.Target) *reach.Port {
	t.Helper()
	port, err := reach.Open(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(port.Close)
	return port
}

// askRouter measures once.
func askRouter(t *testing.T, target reach.Target) (reach.Evidence, error) {
	t.Helper()
	port := openPort(t, target)
	defer port.Close()
	ctx, cancel := context.WithTimeout(t.Context(), routerTimeout)
	defer cancel()
	return reach.Router().Probe(ctx, target, port)
}

// checkEnded checks that each subscription that the gateway accepted was ended.
func checkEnded(t *testing.T, gw *gatewaytest.Gateway) {
	t.Helper()
	got := gw.Stats().Requests
	if n := got["upnp subscribe"]; n == 0 || got["upnp unsubscribe"] != n {
		t.Errorf("%v", got)
	}
}

// isOp returns a function that reports whether a request has this operation.
func isOp(op string) func(gatewaytest.Request) bool {
	return func(r gatewaytest.Request) bool { return r.Op == op }
}

func events(e quirks.Events) gatewaytest.Config {
	return gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Events: e}}}
}

func TestRouterTCP(t *testing.T) {
	t.Parallel()
	gw := startRouter(t, gatewaytest.Config{})
	target := freeTarget(t, gw, backends.TCP)
	for _, url := range []string{target.UPnPURL, "", "http://127.0.0.1:1/old.xml"} { // known, searched for, and moved
		target.UPnPURL = url
		e, err := askRouter(t, target)
		if err != nil || e.Verdict != reach.Reachable || e.Level != reach.LevelLAN || e.Inferred ||
			e.From.Addr() != loopback || e.To != target.Internal || e.RTT <= 0 || e.At.IsZero() || !strings.Contains(e.Detail, "arrived") {
			t.Errorf("URL %q: %+v, %v", url, e, err)
		}
		checkEnded(t, gw)
	}
	requests, err := gw.AwaitRequests(t.Context(), 1, isOp("subscribe"))
	if err != nil {
		t.Fatal(err)
	}
	callback := fmt.Sprintf("\r\nCALLBACK: <http://%v/", target.Internal)
	if raw := requests[0].Raw; !bytes.Contains(raw, []byte(callback)) || !bytes.Contains(raw, []byte("\r\nTIMEOUT: Second-60\r\n")) {
		t.Errorf("%q", raw)
	}
}

func TestRouterUDP(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("not measured on this system")
	}
	gw := startRouter(t, gatewaytest.Config{})
	target := freeTarget(t, gw, backends.UDP)
	e, err := askRouter(t, target)
	if err != nil || e.Verdict != reach.Reachable || e.Level != reach.LevelLAN || e.Inferred ||
		e.From != gw.SSDP() || e.To != target.Internal || e.RTT <= 0 || e.At.IsZero() {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestRouterIPv6(t *testing.T) {
	t.Parallel()
	probe, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: no ::1 on this machine (%v)", err)
	}
	_ = probe.Close()
	gw := startRouter(t, gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		if p == backends.UDP && runtime.GOOS == "windows" {
			continue
		}
		target := freeTarget(t, gw, p)
		target.Internal = netip.AddrPortFrom(netip.IPv6Loopback(), target.Internal.Port())
		target.Gateway, target.SSDP, target.UPnPURL = netip.IPv6Loopback(), gw.UPnP().SSDP6(), gw.UPnP().DescriptionURL6()
		if e, err := askRouter(t, target); err != nil || e.Verdict != reach.Reachable || e.From.Addr() != target.Gateway || e.To != target.Internal {
			t.Errorf("%v: %+v, %v", p, e, err)
		}
	}
	// The description over IPv4 has a port at which nothing listens over IPv6.
	target := freeTarget(t, gw, backends.TCP)
	target.Internal, target.Gateway = netip.AddrPortFrom(netip.IPv6Loopback(), target.Internal.Port()), netip.IPv6Loopback()
	target.SSDP = netip.MustParseAddrPort("[::1]:9")
	if e, err := askRouter(t, target); err == nil || e.Verdict != reach.Unknown {
		t.Errorf("a device over IPv4: %+v, %v", e, err)
	}
}

// programPort is a Port that stands for the socket of a program.
type programPort struct{ *reach.Port }

// Owner returns OwnerProgram.
func (programPort) Owner() reach.Owner { return reach.OwnerProgram }

// TestRouterSilent checks that an accepted subscription without a connection is Unreachable.
func TestRouterSilent(t *testing.T) {
	t.Parallel()
	gw := startRouter(t, events(quirks.Events{Silent: true}))
	target := freeTarget(t, gw, backends.TCP)
	port := openPort(t, target)
	if e, err := reach.Router().Probe(t.Context(), target, port); err == nil || e.Verdict != reach.Unknown {
		t.Errorf("without a program: %+v, %v, want unknown: a container may have the port", e, err)
	}
	e, err := reach.Router().Probe(t.Context(), target, programPort{port})
	want := fmt.Sprintf("the router's connection to tcp port %d did not arrive: this host's firewall probably drops or rejects it", target.Internal.Port())
	if err != nil || e.Verdict != reach.Unreachable || e.Level != reach.LevelLAN || e.Inferred || e.From.IsValid() || e.Detail != want {
		t.Errorf("%+v, %v", e, err)
	}
	checkEnded(t, gw)
}

// TestRouterCannotConnect checks the reasons for which the router is not asked, or refuses: the
// verdict is Unknown.
func TestRouterCannotConnect(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		config gatewaytest.Config
		change func(*reach.Target)
		want   string
	}{
		"no event URL":      {events(quirks.Events{Undescribed: true}), nil, "has no events"},
		"status 404":        {events(quirks.Events{Status: 404}), nil, "HTTP status 404"},
		"status 501":        {events(quirks.Events{Status: 501}), nil, "HTTP status 501"},
		"not permitted":     {events(quirks.Events{Status: 403}), nil, "HTTP status 403"},
		"no gateway":        {gatewaytest.Config{}, func(t *reach.Target) { t.Gateway = netip.Addr{} }, "no router"},
		"another device":    {gatewaytest.Config{}, func(t *reach.Target) { t.Gateway = netip.MustParseAddr("127.0.0.9") }, "not the gateway"},
		"a media server":    {gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Description: quirks.Description{MediaServer: true}}}}, nil, "not a gateway"},
		"no UPnP":           {gatewaytest.Config{Protocols: []string{"pcp"}}, func(t *reach.Target) { t.SSDP = netip.MustParseAddrPort("127.0.0.1:9") }, "no answer to UPnP searches"},
		"an https URL":      {gatewaytest.Config{}, func(t *reach.Target) { t.UPnPURL = "https" + strings.TrimPrefix(t.UPnPURL, "http") }, "not a plain http URL"},
		"not a URL":         {gatewaytest.Config{}, func(t *reach.Target) { t.UPnPURL = "http://[" }, "not a URL"},
		"a URL with a name": {gatewaytest.Config{}, func(t *reach.Target) { t.UPnPURL = "http://router.invalid/" }, "not the gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := startRouter(t, tt.config)
			target := freeTarget(t, gw, backends.TCP)
			if tt.change != nil {
				tt.change(&target)
			}
			if e, err := askRouter(t, target); err == nil || !strings.Contains(err.Error(), tt.want) || e.Verdict != reach.Unknown || e.From.IsValid() {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
}

// TestRouterGarbage checks responses that are not those of the standard.
func TestRouterGarbage(t *testing.T) {
	t.Parallel()
	for _, response := range []string{
		"", "garbage\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nSID: a b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nSID: " + strings.Repeat("x", 1000) + "\r\n\r\n", "HTTP/1.1 302 Found\r\nLOCATION: http://127.0.0.1/\r\n\r\n",
	} {
		gw := startRouter(t, gatewaytest.Config{})
		target := freeTarget(t, gw, backends.TCP)
		defer gw.Inject(gatewaytest.Fault{Match: isOp("subscribe"), Drop: response == "", Reply: func([]byte) [][]byte { return [][]byte{[]byte(response)} }})()
		if e, err := askRouter(t, target); err == nil || e.Verdict != reach.Unknown || e.From.IsValid() {
			t.Errorf("%q: %+v, %v", response, e, err)
		}
		if n := gw.Stats().Requests["upnp unsubscribe"]; n != 0 {
			t.Errorf("%q: %d subscriptions were ended", response, n)
		}
	}
}

// TestRouterNonce checks that only a connection with the nonce counts, and only from the router.
func TestRouterNonce(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("this system has one loopback address only")
	}
	for name, tt := range map[string]struct {
		from    string
		request func(path string) string
		want    reach.Verdict
		err     string
	}{
		"the router":          {"127.0.0.1", func(p string) string { return "NOTIFY " + p + " HTTP/1.1\r\n\r\n" }, reach.Reachable, ""},
		"no valid request":    {"127.0.0.1", func(p string) string { return "NOTIFY " + p }, reach.Reachable, ""},
		"another nonce":       {"127.0.0.1", func(string) string { return "NOTIFY /AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\r\n\r\n" }, reach.Unreachable, ""},
		"half of the nonce":   {"127.0.0.1", func(p string) string { return "NOTIFY " + p[:12] }, reach.Unreachable, ""},
		"another method":      {"127.0.0.1", func(p string) string { return "POST " + p + " HTTP/1.1\r\n\r\n" }, reach.Unreachable, ""},
		"nothing":             {"127.0.0.1", func(string) string { return "" }, reach.Unreachable, ""},
		"from another device": {"127.0.0.2", func(p string) string { return "NOTIFY " + p + " HTTP/1.1\r\n\r\n" }, reach.Unknown, "not from the router"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := startRouter(t, events(quirks.Events{Silent: true}))
			target := freeTarget(t, gw, backends.TCP)
			sent := make(chan struct{})
			defer func() { <-sent }()
			go func() {
				defer close(sent)
				requests, err := gw.AwaitRequests(t.Context(), 1, isOp("subscribe"))
				if err != nil {
					t.Error(err)
					return
				}
				_, rest, _ := strings.Cut(string(requests[0].Raw), target.Internal.String())
				path, _, _ := strings.Cut(rest, ">")
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(tt.from)}}
				conn, err := d.DialContext(t.Context(), "tcp", target.Internal.String())
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, tt.request(path))
				answer, _ := io.ReadAll(conn)
				const ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
				if caught := tt.want == reach.Reachable; caught && string(answer) != ok || !caught && tt.err == "" && len(answer) > 0 {
					t.Errorf("answered %q", answer)
				}
			}()
			e, err := reach.Router().Probe(t.Context(), target, programPort{openPort(t, target)})
			if e.Verdict != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%+v, %v", e, err)
			}
			checkEnded(t, gw)
		})
	}
}

// TestRouterSearchSource checks that an answer of another device to a search does not count, and
// that a router is asked whether it answers at all.
func TestRouterSearchSource(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("this system has one loopback address only")
	}
	const another = "another device"
	for name, want := range map[string]string{another: "no answer to UPnP searches", "other ports only": "answers searches from other ports", "no port": "no answer to UPnP searches"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := netip.AddrPortFrom(loopback, 0)
			if name == another {
				at = netip.MustParseAddrPort("127.0.0.2:0")
			}
			gw := startRouter(t, gatewaytest.Config{ListenSSDP: at})
			target := freeTarget(t, gw, backends.UDP)
			dropped := func(r gatewaytest.Request) bool {
				return r.Op == "search" && (name == "no port" || name != another && r.Source == target.Internal)
			}
			defer gw.Inject(gatewaytest.Fault{Match: dropped, Drop: true})()
			e, err := askRouter(t, target)
			if err == nil || e.Verdict != reach.Unknown || e.From.IsValid() || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
}

// TestRouterOtherProgram checks that the port of another program gets nothing, and that the
// evidence is inferred.
func TestRouterOtherProgram(t *testing.T) {
	t.Parallel()
	gw := startRouter(t, gatewaytest.Config{})
	target := freeTarget(t, gw, backends.TCP)
	ln, err := net.Listen("tcp4", target.Internal.String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if conn, err := ln.Accept(); err == nil {
			accepted <- conn
		}
	}()
	e, err := askRouter(t, target)
	if err != nil || e.Verdict != reach.Reachable || !e.Inferred || e.To.Addr() != target.Internal.Addr() || e.To.Port() == target.Internal.Port() || e.To.Port() == 0 {
		t.Errorf("%+v, %v", e, err)
	}
	silent := startRouter(t, events(quirks.Events{Silent: true}))
	target.UPnPURL = silent.UPnP().DescriptionURL()
	if e, err := askRouter(t, target); err == nil || e.Verdict != reach.Unknown || !e.Inferred || !strings.Contains(err.Error(), "another program has the port") {
		t.Errorf("%+v, %v", e, err)
	}
	checkEnded(t, silent)
	_ = ln.Close()
	if conn, ok := <-accepted; ok {
		t.Errorf("the program got a connection from %v", conn.RemoteAddr())
		_ = conn.Close()
	}
	if runtime.GOOS == "windows" {
		return
	}
	target = freeTarget(t, gw, backends.UDP)
	conn, err := net.ListenPacket("udp4", target.Internal.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if e, err := askRouter(t, target); err != nil || e.Verdict != reach.Reachable || !e.Inferred || e.To.Port() == target.Internal.Port() {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestRouterOfProgram checks that a program whose socket reports to the catcher does not get the
// router's answers.
func TestRouterOfProgram(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("not measured on this system")
	}
	gw := startRouter(t, gatewaytest.Config{})
	target := freeTarget(t, gw, backends.UDP)
	port := ownPort{Port: openPort(t, target), expected: new([]func())}
	e, err := reach.Router().Probe(t.Context(), target, port)
	if err != nil || e.Verdict != reach.Reachable || e.Inferred || e.To != target.Internal {
		t.Errorf("%+v, %v", e, err)
	}
	searches := 0
	for _, r := range gw.Requests() {
		if r.Service == "ssdp" && r.Source == target.Internal {
			searches++
		}
	}
	if searches == 0 || len(*port.expected) < searches {
		t.Errorf("%d searches, and answers to %d are expected", searches, len(*port.expected))
	}
}

// ownPort is a Port that claims to belong to the program.
type ownPort struct {
	*reach.Port
	expected *[]func()
}

func (ownPort) Owner() reach.Owner { return reach.OwnerProgram }

func (p ownPort) Expect(e reach.Expectation) (<-chan reach.Arrival, func()) {
	arrivals, stop := p.Port.Expect(e)
	*p.expected = append(*p.expected, stop)
	return arrivals, stop
}

// TestRouterNotObserved checks a port that cannot be observed.
func TestRouterNotObserved(t *testing.T) {
	t.Parallel()
	gw := startRouter(t, gatewaytest.Config{})
	target := freeTarget(t, gw, backends.TCP)
	target.Internal = netip.MustParseAddrPort("192.0.2.1:80") // of another host
	if e, err := askRouter(t, target); err == nil || e.Verdict != reach.Unknown || len(gw.Requests()) > 0 {
		t.Errorf("%+v, %v", e, err)
	}
	target = freeTarget(t, gw, backends.TCP)
	e, err := reach.Router().Probe(t.Context(), target, busyPort{openPort(t, target)})
	if !errors.Is(err, errBusy) || e.Verdict != reach.Unknown || len(gw.Requests()) > 0 {
		t.Errorf("%+v, %v, and %d requests for a program that does not accept connections", e, err, len(gw.Requests()))
	}
}

var errBusy = errors.New("busy")

// busyPort is the port of a program that does not accept connections.
type busyPort struct{ *reach.Port }

func (busyPort) Owner() reach.Owner { return reach.OwnerProgram }
func (busyPort) Observing() error   { return errBusy }

// TestRouterCancelled checks that the prober ends with ctx.
func TestRouterCancelled(t *testing.T) {
	t.Parallel()
	cause := errors.New("the cause")
	for op, p := range map[string]backends.Protocol{"describe": backends.TCP, "subscribe": backends.TCP, "search": backends.UDP} {
		if p == backends.UDP && runtime.GOOS == "windows" {
			continue
		}
		gw := startRouter(t, gatewaytest.Config{})
		target := freeTarget(t, gw, p)
		port := openPort(t, target)
		ctx, cancel := context.WithCancelCause(t.Context())
		defer gw.Inject(gatewaytest.Fault{Match: isOp(op), Drop: op == "search", Hold: t.Context().Done()})()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = gw.AwaitRequests(t.Context(), 1, isOp(op))
			cancel(cause)
		}()
		if e, err := reach.Router().Probe(ctx, target, port); !errors.Is(err, cause) || e.Verdict != reach.Unknown {
			t.Errorf("%s: %+v, %v", op, e, err)
		}
		<-ended
	}
}

// device is a UPnP device with one service, and with responses that a test writes.
type device struct {
	url       string
	subscribe func(callback string, conn net.Conn) // gets the connection of a subscription
	mu        sync.Mutex
	ended     []string // the subscriptions that were ended
}

const testSID = "uuid:5e8b6f6a-1dd1-11b2-8000-000000000001"

func startDevice(t *testing.T, subscribe func(callback string, conn net.Conn)) *device {
	t.Helper()
	d := &device{subscribe: subscribe}
	s := httptest.NewServer(d)
	t.Cleanup(s.Close)
	d.url = s.URL
	return d
}

func (d *device) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
		_, _ = io.WriteString(w, `<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>`+
			`<controlURL>/ctl</controlURL><eventSubURL>/evt</eventSubURL></service></serviceList></device></root>`)
	case "SUBSCRIBE":
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			d.subscribe(strings.Trim(r.Header.Get("CALLBACK"), "<>"), conn)
			_ = conn.Close()
		}
	case "UNSUBSCRIBE":
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ended = append(d.ended, r.Header.Get("SID"))
	}
}

// TestRouterUnsubscribes checks that a subscription is ended although ctx has ended.
func TestRouterUnsubscribes(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	d := startDevice(t, func(_ string, conn net.Conn) {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nSID: "+testSID+"\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn) // until the response was read
		cancel()
	})
	target := freeTarget(t, startRouter(t, gatewaytest.Config{}), backends.TCP)
	target.UPnPURL = d.url
	if e, err := reach.Router().Probe(ctx, target, openPort(t, target)); !errors.Is(err, context.Canceled) || e.Verdict != reach.Unknown {
		t.Errorf("%+v, %v", e, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ended) != 1 || d.ended[0] != testSID {
		t.Errorf("ended: %q", d.ended)
	}
}

// TestRouterResponseLost checks that a connection counts although the response to the
// subscription cannot be read.
func TestRouterResponseLost(t *testing.T) {
	t.Parallel()
	d := startDevice(t, func(callback string, conn net.Conn) {
		to, path, _ := strings.Cut(strings.TrimPrefix(callback, "http://"), "/")
		event, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", to)
		if err != nil {
			t.Error(err)
			return
		}
		defer event.Close()
		_, _ = io.WriteString(event, "NOTIFY /"+path+" HTTP/1.1\r\n\r\n")
		_, _ = io.Copy(io.Discard, event)
		_, _ = io.WriteString(conn, "garbage\r\n\r\n")
	})
	target := freeTarget(t, startRouter(t, gatewaytest.Config{}), backends.TCP)
	target.UPnPURL = d.url
	if e, err := askRouter(t, target); err != nil || e.Verdict != reach.Reachable || e.To != target.Internal {
		t.Errorf("%+v, %v", e, err)
	}
}
