package upnp_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
	"github.com/natforward/goforward/internal/ctxsync"
)

// searchWait is the Wait of searches that end only after it, with all responses
// received. noReplyWait is the Wait of searches that no device can respond to.
const (
	searchWait  = 2 * time.Second
	noReplyWait = 100 * time.Millisecond
)

// TestSearchQuirks checks that gateways that respond only to some searches, or in
// unusual forms, are found.
func TestSearchQuirks(t *testing.T) {
	t.Parallel()
	type search = quirks.Search
	for name, router := range map[string]quirks.UPnP{
		"from another port":            {Search: search{OtherPort: true}},
		"version 1 only":               {Version: 1, Search: search{NoIGD2: true}},
		"no version 2":                 {Search: search{NoIGD2: true}},
		"reports another version":      {Search: search{Version: 1}},
		"one device only for ssdp:all": {Search: search{FirstOnly: true}},
		"no response to port 1900":     {Search: search{NoPort1900: true}},
		"duplicates":                   {Search: search{Duplicates: 5}},
		"garbage first":                {Search: search{Garbage: [][]byte{{}, {0, 1, 2}, []byte("HTTP/1.1 200 OK\r\n\r\n"), []byte(strings.Repeat("x", 9000))}}},
		"line feeds":                   {Search: search{LFOnly: true, NoSpace: true, NoReason: true}},
		"no blank line":                {Search: search{NoBlankLine: true}},
		"unicast only":                 {Search: search{UnicastOnly: true}},
		"connection services only":     {Search: search{ConnectionOnly: true}},
		"PPP connection service only":  {Description: quirks.Description{Connections: quirks.ConnectionPPP}, Search: search{ConnectionOnly: true}},
		"after two seconds":            {Search: search{Delay: 2 * time.Second}},
		"several quirks":               {Version: 1, Search: search{OtherPort: true, NoIGD2: true, FirstOnly: true, Duplicates: 3, LFOnly: true, NoSpace: true, NoBlankLine: true}},
		"IP and PPP":                   {Description: quirks.Description{Connections: quirks.ConnectionBoth}},
		"PPP only":                     {Description: quirks.Description{Connections: quirks.ConnectionPPP}},
		"DSL Forum":                    {Description: quirks.Description{DSLForum: true}},
		"DSL Forum, PPP":               {Version: 1, Description: quirks.Description{DSLForum: true, Connections: quirks.ConnectionPPP}},
		"the last of several WANs":     {Description: quirks.Description{WANDevices: 3, Connected: 2}},
		"the first of several WANs":    {Description: quirks.Description{WANDevices: 3}},
		"several WANs, IP and PPP":     {Version: 1, Description: quirks.Description{WANDevices: 3, Connected: 1, Connections: quirks.ConnectionBoth}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: router}})
			b := newBackend(t, gw, upnp.Config{})
			m := mustMap(t, gw, b, request(8080, 9000))
			if m.External.Addr() != gw.External() {
				t.Errorf("mapped %v", m.External)
			}
			if n := gw.Stats().Requests["upnp describe"]; n != 1 {
				t.Errorf("%d requests of the description", n)
			}
			for _, q := range gw.Requests() {
				if q.Service == "upnp" && q.Op != "describe" && q.Action == "" {
					t.Errorf("sent %.60q", q.Raw)
				}
				if q.Service == "ssdp" && q.Source.Port() == 1900 {
					t.Error("searched from port 1900")
				}
			}
			if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
			}
		})
	}
}

// TestSearchTargets checks that a gateway is found that responds to searches for one
// target only.
func TestSearchTargets(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"device:InternetGatewayDevice:2", "service:WANIPConnection:1", "service:WANIPConnection:2", "service:WANPPPConnection:1"} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{})
			at := fakeSSDP(t, gw.Addr().Addr(), func(conn *net.UDPConn, search []byte, from netip.AddrPort) {
				if strings.Contains(string(search), "ST: urn:schemas-upnp-org:"+target+"\r\n") {
					_, _ = conn.WriteToUDPAddrPort(searchResponse(gw.UPnP().DescriptionURL(), 0), from)
				}
			})
			mustMap(t, gw, newBackend(t, gw, upnp.Config{SSDP: []netip.AddrPort{at}}), request(8080, 9000))
		})
	}
}

// TestSearchDelayed checks that responses may use the full second that searches
// allow.
func TestSearchDelayed(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Search: quirks.Search{Spread: true}})
	mustMap(t, gw, b, request(8080, 9000))
}

// TestSearchMulticastOnly checks that HOST in a search is its destination. A
// gateway that requires the multicast group in HOST does not respond to a unicast
// search.
func TestSearchMulticastOnly(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{MulticastOnly: true}}}})
	err := newBackend(t, gw, upnp.Config{Wait: noReplyWait}).Probe(t.Context())
	wantError(t, err, backends.ErrNoReply, 0)
	// The relayed search has the multicast group in HOST, and finds the gateway.
	relay := relayTo(t, gw.SSDP(), func(search string) string {
		return strings.Replace(search, "HOST: 127", "HOST: 239.255.255.250:1900\r\nX: 127", 1)
	})
	mustMap(t, gw, newBackend(t, gw, upnp.Config{SSDP: []netip.AddrPort{gw.SSDP(), relay}}), request(8080, 9000))
}

// TestSearchEnds checks that a search ends if no device responds, if the caller
// cancels it, and if the backend is closed.
func TestSearchEnds(t *testing.T) {
	t.Parallel()
	ssdp, searches := silentSSDP(t)
	newBackend := func(wait time.Duration) *upnp.Backend {
		b, err := upnp.New(upnp.Config{Gateway: ssdp.Addr(), SSDP: []netip.AddrPort{ssdp}, Wait: wait})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b
	}
	_, err := newBackend(50 * time.Millisecond).ExternalAddr(t.Context())
	wantError(t, err, backends.ErrNoReply, 0)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v: no caller set a deadline", err)
	}

	errCaller := errors.New("cancelled by the caller")
	for name, stop := range map[string]func(*upnp.Backend, context.CancelCauseFunc) error{
		"caller": func(_ *upnp.Backend, cancel context.CancelCauseFunc) error { cancel(errCaller); return errCaller },
		"close":  func(b *upnp.Backend, _ context.CancelCauseFunc) error { _ = b.Close(); return net.ErrClosed },
	} {
		b := newBackend(time.Minute)
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		for len(searches) > 0 {
			<-searches
		}
		go func() { ended <- b.Probe(ctx) }()
		<-searches
		if want := stop(b, cancel); !errors.Is(<-ended, want) {
			t.Errorf("%s: want %v", name, want)
		}
		cancel(nil)
	}
}

// TestSearchRefused checks that a search is promising unless the gateway refuses it, at all
// of its addresses.
func TestSearchRefused(t *testing.T) {
	t.Parallel()
	silent, searches := silentSSDP(t)
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	closed := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = conn.Close()
	needHosts(t)
	for name, to := range map[string][]netip.AddrPort{"silent": {silent}, "closed": {closed}, "closed and silent": {closed, silent}} {
		isClosed, last := name == "closed", to[len(to)-1]
		b, err := upnp.New(upnp.Config{Gateway: to[0].Addr(), Gateway4: last.Addr(), SSDP: to, Wait: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() { ended <- b.Probe(t.Context()) }()
		for n := 0; !isClosed && n < 3; n++ { // two searches, and the datagram that tests for a refusal
			<-searches
		}
		for n := 0; isClosed && b.Promising() && n < 10000; n++ {
			time.Sleep(time.Millisecond)
		}
		if b.Promising() == isClosed {
			t.Errorf("%s: promising: %v", name, b.Promising())
		}
		_ = b.Close()
		<-ended
		for len(searches) > 0 {
			<-searches
		}
	}
}

// TestNoSearchWithURL checks that a backend with a description URL sends no
// searches and uses no other device.
func TestNoSearchWithURL(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{MovePort: true}}})
	b := newBackend(t, gw, upnp.Config{URL: gw.UPnP().DescriptionURL()})
	mustMap(t, gw, b, request(8080, 9000))
	gw.Restart(gatewaytest.RestartOptions{Silent: true})
	_, err := b.ExternalAddr(t.Context())
	wantError(t, err, backends.ErrNoReply, 0)
	if n := gw.Stats().Requests["ssdp search"]; n != 0 {
		t.Errorf("searched %d times", n)
	}
}

// TestSearchShared checks that concurrent callers share one search.
func TestSearchShared(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	ended := make(chan error)
	for range 5 {
		go func() { ended <- b.Probe(t.Context()) }()
	}
	for range 5 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if n := gw.Stats().Requests["upnp describe"]; n != 1 {
		t.Errorf("%d requests of the description", n)
	}
}

// TestOneServiceSilent checks that a service that resets the connection does not
// hide the other services of its device.
func TestOneServiceSilent(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{Description: quirks.Description{Connections: quirks.ConnectionBoth}})
	gw.Inject(gatewaytest.Fault{Drop: true, Match: func(q gatewaytest.Request) bool {
		return strings.Contains(string(q.Raw), "WANPPPConnection:1#")
	}})
	mustMap(t, gw, b, request(8080, 9000))
}

// TestGateways checks that all responding gateways are reported, the best first,
// each with a reason.
func TestGateways(t *testing.T) {
	t.Parallel()
	needHosts(t)
	gateway := start(t, gatewaytest.Config{External: netip.MustParseAddr("10.0.0.2")})
	down := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Status: quirks.Status{Connection: "Disconnected"}}}})
	public := start(t, gatewaytest.Config{})
	duplicate := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{NoSpace: true}}}})
	all := []netip.AddrPort{gateway.SSDP(), down.SSDP(), public.SSDP()}
	list := func(config upnp.Config) string {
		config.Wait = searchWait
		found, err := newBackend(t, gateway, config).Gateways(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, g := range found {
			out = append(out, g.Reason)
		}
		return strings.Join(out, "; ")
	}
	want := "connected, without a public address, and this host's default gateway; " +
		"connected, with a public address, but not this host's default gateway; not connected: Disconnected, but not this host's default gateway"
	if got := list(upnp.Config{SSDP: all}); got != want {
		t.Errorf("found %s, want %s", got, want)
	}
	want = "connected, without a public address, and this host's default gateway"
	if got := list(upnp.Config{SSDP: all, Only: true}); got != want {
		t.Errorf("with Only, found %s, want %s", got, want)
	}
	if got := list(upnp.Config{SSDP: []netip.AddrPort{public.SSDP(), duplicate.SSDP()}}); got !=
		"connected, with a public address, but not this host's default gateway, which offers no UPnP; "+
			"connected, with a public address, but not this host's default gateway, and answered later" {
		t.Errorf("found %s, want a gateway that answered later", got)
	}
	gateway.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return q.Op == "describe" }, Reply: func([]byte) [][]byte {
		return [][]byte{[]byte("HTTP/1.1 403 Forbidden\r\n\r\n")}
	}})
	if got := list(upnp.Config{SSDP: all}); !strings.HasPrefix(got, "connected, with a public address, but not this host's default gateway, "+
		"which offers no UPnP that works: upnp: description at http://"+gateway.Addr().Addr().String()) {
		t.Errorf("found %s, want the error of the default gateway", got)
	}
}

// TestDefaultGatewayFirst checks that the default gateway is used regardless of its status,
// even if it responds two seconds later than another device. The other device is used only
// if the default gateway has no usable device, and the mapping names it.
func TestDefaultGatewayFirst(t *testing.T) {
	t.Parallel()
	needHosts(t)
	for name, router := range map[string]quirks.UPnP{
		"connected":      {},
		"not connected":  {Status: quirks.Status{Connection: "Disconnected"}},
		"no status":      {Status: quirks.Status{Unsupported: true}},
		"no address":     {Status: quirks.Status{External: func(netip.Addr) string { return "" }}},
		"another NAT":    {Status: quirks.Status{External: func(netip.Addr) string { return "10.0.0.2" }}},
		"not a gateway":  {Description: quirks.Description{ControlURL: quirks.ControlEmpty}},
		"does not exist": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gateway, other := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: router}}), start(t, gatewaytest.Config{})
			gateway.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return q.Service == "ssdp" }, Delay: 2 * time.Second, Drop: name == "does not exist"})
			used := gateway
			if strings.HasPrefix(name, "not a") || strings.HasPrefix(name, "does not") {
				used = other
			}
			m := mustMap(t, used, newBackend(t, gateway, upnp.Config{SSDP: []netip.AddrPort{gateway.SSDP(), other.SSDP()}}), request(8080, 9000))
			if m.Gateway.Addr() != used.Addr().Addr() {
				t.Errorf("mapped by %v, want %v", m.Gateway, used.Addr())
			}
		})
	}
}

// isDescribe selects requests for the description.
func isDescribe(q gatewaytest.Request) bool { return q.Op == "describe" }

// httpReply returns a Reply that sends a response without a body.
func httpReply(status string) func([]byte) [][]byte {
	return func([]byte) [][]byte { return [][]byte{[]byte("HTTP/1.1 " + status + "\r\nContent-Length: 0\r\n\r\n")} }
}

// TestDescriptionRetried checks that a temporary failure of the first requests for the
// description does not rule out a device, and that the number of requests is limited.
func TestDescriptionRetried(t *testing.T) {
	t.Parallel()
	needHosts(t)
	for name, tt := range map[string]struct {
		fault gatewaytest.Fault
		other bool // the device is not the gateway's
		fails bool
		n     int // requests of the description
	}{
		"one reset":                   {gatewaytest.Fault{Times: 1, Drop: true}, false, false, 2},
		"two resets":                  {gatewaytest.Fault{Times: 2, Drop: true}, false, false, 3},
		"always reset":                {gatewaytest.Fault{Drop: true}, false, true, 3},
		"two busy":                    {gatewaytest.Fault{Times: 2, Reply: httpReply("503 Service Unavailable")}, false, false, 3},
		"one silent":                  {gatewaytest.Fault{Times: 1, Hold: make(chan struct{})}, false, false, 2},
		"not found":                   {gatewaytest.Fault{Reply: httpReply("404 Not Found")}, false, true, 1},
		"another device, one reset":   {gatewaytest.Fault{Times: 1, Drop: true}, true, false, 2},
		"another device always reset": {gatewaytest.Fault{Drop: true}, true, true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.fault.Match = isDescribe
			gw := start(t, gatewaytest.Config{})
			gw.Inject(tt.fault)
			config := upnp.Config{Wait: searchWait}
			if tt.other {
				config.Gateway = host()
			}
			err := newBackend(t, gw, config).Probe(t.Context())
			if (err != nil) != tt.fails {
				t.Errorf("Probe: %v", err)
			}
			if n := gw.Stats().Requests["upnp describe"]; n != tt.n {
				t.Errorf("%d requests of the description, want %d", n, tt.n)
			}
		})
	}
}

// TestSearchErrors checks that the error of a search names what was found at the
// gateway, also if a timeout of the caller ends the search.
func TestSearchErrors(t *testing.T) {
	t.Parallel()
	needHosts(t)
	describe := func(reply func([]byte) [][]byte) gatewaytest.Fault {
		return gatewaytest.Fault{Match: isDescribe, Reply: reply}
	}
	closed, _ := countConns(t, netip.AddrPortFrom(host(), 0))
	closed.stop()
	for name, tt := range map[string]struct {
		router quirks.UPnP
		fault  gatewaytest.Fault
		only   bool // Config.Only, with another gateway
		kind   error
		text   string
	}{
		"not found":     {fault: describe(httpReply("404 Not Found")), kind: backends.ErrMalformed, text: "description at URL: HTTP status 404 (Not Found)"},
		"forbidden":     {fault: describe(httpReply("403 Forbidden")), kind: backends.ErrNotAuthorized, text: "description at URL: HTTP status 403 (Forbidden)"},
		"redirect":      {fault: describe(httpReply("301 Moved Permanently")), kind: backends.ErrMalformed, text: "description at URL: HTTP status 301 (Moved Permanently)"},
		"always busy":   {fault: describe(httpReply("503 Service Unavailable")), kind: backends.ErrMalformed, text: "description at URL: HTTP status 503 (Service Unavailable)"},
		"not a gateway": {router: quirks.UPnP{Description: quirks.Description{ControlURL: quirks.ControlEmpty}}, kind: backends.ErrNoReply, text: `description at URL: not supported: device "Test router" is not a gateway`},
		"media server":  {router: quirks.UPnP{Description: quirks.Description{MediaServer: true}}, kind: backends.ErrNoReply, text: `description at URL: not supported: device "`},
		"HTML": {
			fault: describe(func([]byte) [][]byte { return [][]byte{[]byte("HTTP/1.1 200 OK\r\n\r\n<html>Welcome</html>")} }),
			kind:  backends.ErrMalformed, text: "description at URL: malformed reply: no description in",
		},
		"silent":         {fault: gatewaytest.Fault{Match: isDescribe, Hold: make(chan struct{})}, kind: backends.ErrNoReply, text: "description at URL: no reply from the gateway"},
		"closed port":    {router: quirks.UPnP{Search: quirks.Search{Location: func(string) string { return "http://" + closed.addr.String() + "/" }}}, kind: backends.ErrNoReply, text: "connection refused"},
		"https":          {router: quirks.UPnP{Search: quirks.Search{Location: func(string) string { return "https://192.0.2.1/" }}}, kind: backends.ErrNoReply, text: "LOCATION: invalid request: not a plain http "},
		"another device": {only: true, kind: backends.ErrNoReply, text: "a device at ADDR answered; it is not the device of "},
		"none":           {fault: gatewaytest.Fault{Drop: true}, kind: backends.ErrNoReply, text: "no device answered the search"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: tt.router}})
			if tt.fault.Match != nil || tt.fault.Drop {
				gw.Inject(tt.fault)
			}
			text := strings.NewReplacer("URL", gw.UPnP().DescriptionURL(), "ADDR", gw.Addr().Addr().String()).Replace(tt.text)
			for _, bySearch := range []bool{true, false} {
				config := upnp.Config{Wait: searchWait}
				ctx, cancel := context.WithTimeoutCause(t.Context(), searchWait, backends.ErrNoReply)
				defer cancel()
				if tt.only {
					config.Gateway, config.Only = host(), true
				}
				if bySearch {
					config.Wait, ctx = searchWait/2, t.Context()
				} else {
					config.Wait = time.Minute
				}
				err := newBackend(t, gw, config).Probe(ctx)
				if wantError(t, err, tt.kind, 0); err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("%v, want %q", err, text)
				}
			}
		})
	}
}

// TestStatusOptional checks that a device is used although it closes the connection
// or does not respond when it is asked for its status or its address.
func TestStatusOptional(t *testing.T) {
	t.Parallel()
	for _, action := range []string{"GetStatusInfo", "GetExternalIPAddress", "GetFirewallStatus"} {
		for name, fault := range map[string]gatewaytest.Fault{
			"closed": {Match: isAction(action), Drop: true},
			"silent": {Match: isAction(action), Hold: make(chan struct{})},
		} {
			t.Run(action+" "+name, func(t *testing.T) {
				t.Parallel()
				if action == "GetFirewallStatus" {
					gw, b := open6(t, quirks.UPnP{})
					gw.Inject(fault)
					if _, err := b.Map(t.Context(), request(8080, 0)); err != nil {
						t.Error(err)
					}
					return
				}
				gw, b := startBackend(t, quirks.UPnP{})
				gw.Inject(fault)
				m := mustMap(t, gw, b, request(8080, 9000))
				if known := action == "GetStatusInfo"; m.External.Addr().IsValid() != known {
					t.Errorf("mapped %v", m.External)
				}
				mustMap(t, gw, b, request(8081, 9001))
				if n := count(gw, action); n == 0 || n > 4 { // a silent action is requested twice, and again if the connection is cut
					t.Errorf("%s was sent %d times", action, n)
				}
			})
		}
	}
}

// TestSlowActions checks that a device that takes two seconds for each action is
// found with the default Wait.
func TestSlowActions(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return q.Action != "" }, Delay: 2 * time.Second})
	m := mustMap(t, gw, newBackend(t, gw, upnp.Config{Wait: upnp.DefaultWait}), request(8080, 9000))
	if m.External.Addr() != gw.External() {
		t.Errorf("mapped %v", m.External)
	}
}

// TestLateResponse checks that a response counts until Wait has elapsed.
func TestLateResponse(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Match: func(q gatewaytest.Request) bool { return q.Service == "ssdp" }, Delay: 3 * time.Second})
	mustMap(t, gw, newBackend(t, gw, upnp.Config{}), request(8080, 9000))
}

// TestConnectionStates checks that a device that reports no state, or one other
// than Connected, is used if there is no other device.
func TestConnectionStates(t *testing.T) {
	t.Parallel()
	needHosts(t)
	noAddress := func(netip.Addr) string { return "" }
	var ssdp []netip.AddrPort
	want := map[netip.Addr]string{{}: "connected, with a public address, but not this host's default gateway"}
	for _, tt := range []struct {
		status quirks.Status
		reason string
	}{
		{quirks.Status{}, "connected, with a public address"},
		{quirks.Status{Connection: "up"}, "connected, with a public address"},
		{quirks.Status{External: noAddress}, "connected, without a public address"},
		{quirks.Status{Unsupported: true}, "does not report whether it is connected"},
		{quirks.Status{Connection: "Disconnected"}, "not connected: Disconnected"},
	} {
		gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Status: tt.status}}})
		ssdp = append(ssdp, gw.SSDP())
		want[gw.Addr().Addr()] = tt.reason
		if tt.status.Connection != "" || tt.status.Unsupported {
			mustMap(t, gw, newBackend(t, gw, upnp.Config{}), request(8080, 9000))
		}
	}
	b, err := upnp.New(upnp.Config{Gateway: host(), SSDP: ssdp, Wait: searchWait})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	all, err := b.Gateways(t.Context())
	if err != nil || len(all) != len(want)-1 {
		t.Fatalf("found %d, %v", len(all), err)
	}
	for i, g := range all {
		reason := want[g.Device.Host] + ", but not this host's default gateway"
		if i < 2 { // either can be the first to respond
			reason = want[netip.Addr{}] + []string{", which offers no UPnP", ", and answered later"}[i]
		}
		if g.Reason != reason {
			t.Errorf("gateway %d: %q, want %q", i, g.Reason, reason)
		}
	}
}

// TestLocationHostIgnored checks that the description is fetched from the gateway
// itself if LOCATION names another host, and that no other host is contacted.
func TestLocationHostIgnored(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{
		"this host":               "127.0.0.1",
		"another host":            "127.99.0.1",
		"this host with IPv6":     "[::1]",
		"a zone of another host":  "[fe80::1%253]",
		"a zone without escaping": "[fe80::1%3]",
		"another network":         "10.9.8.7",
		"unspecified":             "0.0.0.0",
		"host name":               "localhost",
		"multicast":               "239.255.255.250",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{
				Location: func(at string) string {
					u, _ := url.Parse(at)
					return "http://" + host + ":" + u.Port() + u.Path
				},
			}}}})
			counters := countConnsElsewhere(t, gw)
			mustMap(t, gw, newBackend(t, gw, upnp.Config{}), request(8080, 9000))
			for _, counter := range counters {
				if n := counter.count.Load(); n != 0 {
					t.Errorf("%v had %d connections", counter.addr, n)
				}
			}
		})
	}
}

// countConnsElsewhere counts connections to the gateway's port on other addresses
// of this host.
func countConnsElsewhere(t *testing.T, gw *gatewaytest.Gateway) []*connCounter {
	t.Helper()
	u, err := url.Parse(gw.UPnP().DescriptionURL())
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(u.Host).Port()
	var counters []*connCounter
	for _, at := range []string{"127.0.0.1", "127.99.0.1", "::1"} {
		if counter, ok := countConns(t, netip.AddrPortFrom(netip.MustParseAddr(at), port)); ok {
			counters = append(counters, counter)
		}
	}
	return counters
}

// TestLocationRefused checks that the backend does not fetch a location that is not
// a plain http URL.
func TestLocationRefused(t *testing.T) {
	t.Parallel()
	for name, location := range map[string]func(string) string{
		"https":       func(at string) string { return strings.Replace(at, "http", "https", 1) },
		"credentials": func(at string) string { return strings.Replace(at, "//", "//admin:admin@", 1) },
		"a file":      func(string) string { return "file:///etc/passwd" },
		"port 0":      func(string) string { return "http://127.0.0.1:0/" },
		"none":        func(string) string { return "" },
		"very long":   func(at string) string { return at + strings.Repeat("x", 2000) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{Location: location}}}})
			err := newBackend(t, gw, upnp.Config{Wait: noReplyWait}).Probe(t.Context())
			wantError(t, err, backends.ErrNoReply, 0)
			if n := gw.Stats().Requests["upnp describe"]; n != 0 {
				t.Errorf("%d requests of the description", n)
			}
		})
	}
}

// TestLocationOfGateway checks that a gateway is recognised by the address of its
// description, even if its response came from another address.
func TestLocationOfGateway(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	other := respondToSearch(t, host(), func(int) string { return gw.UPnP().DescriptionURL() }, 1)
	b := newBackend(t, gw, upnp.Config{SSDP: []netip.AddrPort{other}, Only: true, Wait: searchWait / 2})
	all, err := b.Gateways(t.Context())
	if err != nil || len(all) != 1 || !all[0].Default || all[0].Device.Host != gw.Addr().Addr() {
		t.Errorf("found %+v, %v", all, err)
	}
}

// respondToSearch starts a device that sends n responses to each search, each with
// its own location.
func respondToSearch(t *testing.T, at netip.Addr, location func(i int) string, n int) netip.AddrPort {
	return fakeSSDP(t, at, func(conn *net.UDPConn, _ []byte, from netip.AddrPort) {
		for i := range n {
			_, _ = conn.WriteToUDPAddrPort(searchResponse(location(i), i), from)
		}
	})
}

// searchResponse returns the response of the i-th device of a host.
func searchResponse(location string, i int) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: %s\r\nST: upnp:rootdevice\r\nUSN: uuid:%d::upnp:rootdevice\r\n\r\n", location, i)
}

// TestNonGatewayLimits checks that the number of requests to devices other than the
// gateway is limited, and that these devices do not prevent finding the gateway.
func TestNonGatewayLimits(t *testing.T) {
	t.Parallel()
	needHosts(t)
	var counters []*connCounter
	var ssdp []netip.AddrPort
	for range 40 {
		counter, ok := countConns(t, netip.AddrPortFrom(host(), 0))
		if !ok {
			t.Fatal("cannot listen")
		}
		counters = append(counters, counter)
		ssdp = append(ssdp, respondToSearch(t, counter.addr.Addr(), func(i int) string { return fmt.Sprintf("http://%v/%d", counter.addr, i) }, 3)) // one more than the limit
	}
	connections := func() (sum int32) {
		for _, counter := range counters {
			n := counter.count.Load()
			if sum += n; n > 4 { // two descriptions, each possibly fetched twice
				t.Errorf("%v had %d connections", counter.addr, n)
			}
		}
		return sum
	}
	gw := start(t, gatewaytest.Config{})
	b := newBackend(t, gw, upnp.Config{SSDP: ssdp, Wait: searchWait / 2})
	if all, err := b.Gateways(t.Context()); err == nil {
		t.Errorf("found %+v among other devices", all)
	}
	if n := connections(); n == 0 || n > 32 {
		t.Errorf("the other devices had %d connections", n)
	}
	b = newBackend(t, gw, upnp.Config{SSDP: append(ssdp, gw.SSDP())})
	mustMap(t, gw, b, request(8080, 9000))
	if n := connections(); n > 64 {
		t.Errorf("the other devices had %d connections", n)
	}
}

// TestSilentDescriptions checks that a search ends with its context while descriptions of
// the gateway, from both its addresses, and of the maximum of other devices are being
// fetched.
func TestSilentDescriptions(t *testing.T) {
	t.Parallel()
	needHosts(t)
	var ssdp []netip.AddrPort
	for i := range 10 {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(host(), 0))) // it accepts no connection
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at, n := l.Addr().(*net.TCPAddr).AddrPort(), 2
		if i < 2 {
			n = 8
		}
		ssdp = append(ssdp, respondToSearch(t, at.Addr(), func(i int) string { return fmt.Sprintf("http://%v/%d", at, i) }, n))
	}
	b, err := upnp.New(upnp.Config{Gateway: ssdp[0].Addr(), Gateway4: ssdp[1].Addr(), SSDP: ssdp, Wait: time.Minute, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), searchWait/2)
	defer cancel()
	wantError(t, b.Probe(ctx), context.DeadlineExceeded, 0)
}

// TestGatewayResponseLimit checks that the number of locations fetched from the
// gateway itself is limited too.
func TestGatewayResponseLimit(t *testing.T) {
	t.Parallel()
	counter, ok := countConns(t, netip.AddrPortFrom(host(), 0))
	if !ok {
		t.Fatal("cannot listen")
	}
	at := respondToSearch(t, counter.addr.Addr(), func(i int) string { return fmt.Sprintf("http://%v/%d", counter.addr, i) }, 60)
	b, err := upnp.New(upnp.Config{Gateway: at.Addr(), SSDP: []netip.AddrPort{at}, Wait: searchWait / 2})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	wantError(t, b.Probe(t.Context()), backends.ErrNoReply, 0)
	if n := counter.count.Load(); n == 0 || n > 16 {
		t.Errorf("the gateway had %d connections", n)
	}
}

// neverReached bounds a call that would not return if the code were wrong.
const neverReached = time.Minute

// TestTryFirst checks that a description whose URL is known is fetched without a search, and
// that a search follows if it cannot be used. Nothing is sent to another host than the gateway.
func TestTryFirst(t *testing.T) {
	t.Parallel()
	silent := func(t *testing.T, at netip.Addr) (url string, connections func() int) {
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		if err != nil {
			t.Fatal(err)
		}
		var n atomic.Int32
		var accepting sync.WaitGroup
		t.Cleanup(accepting.Wait)
		t.Cleanup(func() { _ = ln.Close() })
		accepting.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				n.Add(1)
				defer func() { _ = conn.Close() }()
			}
		})
		return "http://" + ln.Addr().String() + "/", func() int { return int(n.Load()) }
	}
	for name, test := range map[string]struct {
		url      func(*testing.T, *gatewaytest.Gateway) string
		wait     time.Duration
		searches bool
	}{
		"the description": {func(_ *testing.T, gw *gatewaytest.Gateway) string { return gw.UPnP().DescriptionURL() }, time.Hour, false},
		"not found":       {func(_ *testing.T, gw *gatewaytest.Gateway) string { return gw.UPnP().DescriptionURL() + "x" }, time.Hour, true},
		"not a URL":       {func(*testing.T, *gatewaytest.Gateway) string { return "x" }, time.Hour, true},
		"no reply": {func(t *testing.T, gw *gatewaytest.Gateway) string {
			url, _ := silent(t, gw.Addr().Addr())
			return url
		}, time.Millisecond, true},
		"another host": {func(t *testing.T, _ *gatewaytest.Gateway) string {
			needHosts(t)
			url, connections := silent(t, host())
			t.Cleanup(func() {
				if n := connections(); n != 0 {
					t.Errorf("%d connections to another host", n)
				}
			})
			return url
		}, time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{})
			b := newBackend(t, gw, upnp.Config{Wait: time.Hour, Timeout: time.Hour})
			b.SetTryFirstWait(test.wait)
			b.TryFirst(test.url(t, gw))
			ctx, cancel := context.WithTimeout(t.Context(), neverReached)
			defer cancel()
			if err := b.Probe(ctx); err != nil {
				t.Fatalf("Probe: %v", err)
			}
			mustMap(t, gw, b, request(8080, 9000))
			if got := b.DeviceURL(); got != gw.UPnP().DescriptionURL() {
				t.Errorf("DeviceURL: %q", got)
			}
			if n := gw.Stats().Requests["ssdp search"]; n > 0 != test.searches {
				t.Errorf("%d searches", n)
			}
		})
	}
}

// TestRepeatBegins checks that the repetition of a probe begins the search while a description
// that TryFirst named is fetched.
func TestRepeatBegins(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	b := newBackend(t, gw, upnp.Config{Wait: time.Hour, Timeout: time.Hour})
	b.SetTryFirstWait(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), neverReached)
	defer cancel()
	fetched, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(fetched)
		<-release
	}))
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(gw.Addr().Addr(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	_ = server.Listener.Close()
	server.Listener = ln
	server.Start()
	defer server.Close()
	defer close(release)
	b.TryFirst(server.URL + "/")
	repeat := make(chan struct{})
	go func() {
		<-fetched
		close(repeat)
	}()
	if err := b.Probe(ctxsync.WithProbe(ctx, ctxsync.Probe{Repeat: repeat})); err != nil {
		t.Errorf("Probe: %v", err)
	}
}

// TestReplied checks that the connections to the gateway show its round-trip time, and that those to
// other devices do not.
func TestReplied(t *testing.T) {
	t.Parallel()
	needHosts(t)
	for _, isGateway := range []bool{true, false} {
		gw := start(t, gatewaytest.Config{})
		config := upnp.Config{Wait: searchWait}
		if !isGateway {
			config.Gateway = host()
		}
		var replies atomic.Int32
		ctx := ctxsync.WithProbe(t.Context(), ctxsync.Probe{Replied: func(time.Duration) { replies.Add(1) }})
		b := newBackend(t, gw, config)
		if err := b.Probe(ctx); err != nil {
			t.Errorf("Probe: %v", err)
		}
		if n := replies.Load(); n > 0 != isGateway {
			t.Errorf("the device is the gateway's: %v; %d replies", isGateway, n)
		}
		if url := b.DeviceURL(); url != "" != isGateway {
			t.Errorf("DeviceURL: %q", url)
		}
	}
}
