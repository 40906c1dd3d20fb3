package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"regexp"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
)

// watchTest is a running watch on a simulated network.
type watchTest struct {
	t         *testing.T
	lines     *bufio.Reader
	interrupt context.CancelFunc
	code      chan int
	stderr    bytes.Buffer // read it only after the watch has ended

	mu      sync.Mutex
	route   route
	changed chan struct{}
}

func startWatch(t *testing.T, first route, interval time.Duration, args ...string) *watchTest {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	in, out := io.Pipe()
	w := &watchTest{t: t, lines: bufio.NewReader(in), interrupt: interrupt, code: make(chan int, 1), route: first, changed: make(chan struct{}, 1)}
	a := newApp(out, &w.stderr)
	a.pollInterval, a.currentRoute, a.watchNetwork = interval, w.currentRoute, w.watchNetwork
	go func() {
		defer func() { _ = out.Close() }()
		w.code <- a.run(ctx, append([]string{"watch", "--json"}, args...))
	}()
	t.Cleanup(func() {
		interrupt()
		_ = in.Close()
	})
	return w
}

func (w *watchTest) currentRoute(*settings) route {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.route
}

func (w *watchTest) watchNetwork(ctx context.Context, notify func()) error {
	for {
		select {
		case <-w.changed:
			notify()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// setRoute changes the route of the network.
func (w *watchTest) setRoute(to route) {
	w.mu.Lock()
	w.route = to
	w.mu.Unlock()
	w.changed <- struct{}{}
}

// next returns the next object, which must be of the given event.
func (w *watchTest) next(event string) watchRecord {
	w.t.Helper()
	line, err := w.lines.ReadBytes('\n')
	if err != nil {
		w.t.Fatalf("%v; watch exited with %d: %s", err, <-w.code, &w.stderr)
	}
	var r watchRecord
	if err := json.Unmarshal(line, &r); err != nil || r.Event != event || r.Time == "" {
		w.t.Fatalf("%s: %v, want %s", line, err, event)
	}
	return r
}

func (w *watchTest) finish() {
	w.t.Helper()
	w.interrupt()
	if code := <-w.code; code != exitDone || w.stderr.Len() > 0 {
		w.t.Errorf("exit code %d: %s", code, &w.stderr)
	}
}

// TestWatchRouteChanges checks that watch follows a change of the route, its loss and its
// return.
func TestWatchRouteChanges(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{})
	home := route{gateway: gw.Addr(), iface: "eth0", local: netip.MustParseAddr("127.0.0.1")}
	w := startWatch(t, home, time.Hour, "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "natpmp")
	wantRoute := func(want route) {
		t.Helper()
		r := w.next("gateway")
		if len(r.Protocols) == 0 && r.Interface == want.iface {
			r = w.next("gateway") // the first object has the route, the second object adds the protocols
		}
		if r.Interface != want.iface || r.Local != want.local.String() || len(r.Protocols) != 1 || r.Protocols[0] != "natpmp" {
			t.Errorf("%+v, want %+v", r, want)
		}
		if r := w.next("address"); r.IP.String() != "45.45.45.1" || r.Backend != "natpmp" {
			t.Errorf("unexpected object: %+v", r)
		}
	}
	wantRoute(home)
	w.changed <- struct{}{} // a change of something else
	wifi := route{gateway: gw.Addr(), iface: "wlan0", local: netip.MustParseAddr("127.0.0.2")}
	w.setRoute(wifi)
	wantRoute(wifi)
	w.setRoute(route{reason: "no route"})
	if r := w.next("gateway"); r.Gateway != "" || r.Reason != "no route" {
		t.Errorf("unexpected object: %+v", r)
	}
	w.setRoute(home)
	wantRoute(home)
	w.finish()
}

// TestWatchPolls checks that watch tries again if the gateway does not reply, and that it
// detects an address change that the gateway does not announce.
func TestWatchPolls(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Announce: netip.MustParseAddrPort("127.0.0.1:0")})
	at := route{gateway: gw.Addr()}
	w := startWatch(t, at, 10*time.Millisecond, "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "natpmp", "--timeout", "1")
	w.next("gateway")
	w.next("address")
	gw.SetExternal(netip.MustParseAddr("45.45.45.9"))
	if r := w.next("address_changed"); r.IP.String() != "45.45.45.9" || r.Previous != "45.45.45.1" || r.Backend != "natpmp" || r.Gateway != gw.Addr().String() {
		t.Errorf("unexpected object: %+v", r)
	}
	remove := gw.Inject(gatewaytest.Fault{Drop: true})
	w.setRoute(route{gateway: gw.Addr(), iface: "eth0"})
	w.next("gateway")
	if r := w.next("error"); r.Kind != "no_reply" || r.Next == "" || r.Reason == "" {
		t.Errorf("unexpected object: %+v", r)
	}
	remove()
	for line := ""; line != "address"; {
		b, err := w.lines.ReadBytes('\n')
		var r watchRecord
		if err != nil || json.Unmarshal(b, &r) != nil {
			t.Fatalf("%s: %v", b, err)
		}
		line = r.Event
	}
	w.finish()
}

// TestWatchDeduplicatesChanges checks that a change is printed once if several backends
// observe it, and that another address has precedence over a restart.
func TestWatchDeduplicatesChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testWatchDeduplicatesChanges)
}

func testWatchDeduplicatesChanges(t *testing.T) {
	var stdout, stderr bytes.Buffer
	w := &watchSession{app: newApp(&stdout, &stderr)}
	by := availableBackend{protocol: protocol{name: "pcp", title: "PCP"}, gateway: netip.MustParseAddrPort("192.0.2.1:0")}
	first, second := netip.MustParseAddr("45.45.45.1"), netip.MustParseAddr("45.45.45.9")
	w.printAddress(by, first)
	for _, c := range []backends.Change{
		{Kind: backends.AddressChanged, External: first, Reason: "unchanged"},
		{Kind: backends.AddressChanged, External: second, Reason: "a"},
		{Kind: backends.AddressChanged, External: second, Reason: "unchanged"},
		{Kind: backends.Restarted, Reason: "the same change"},
		{Kind: backends.Announced, Reason: "the same change"},
		{},
		{Kind: backends.Announced, Reason: "the announcement, repeated"},
		{Kind: backends.Restarted, Reason: "b\nc"},
		{Kind: backends.Restarted, Reason: "the same restart"},
		{Kind: backends.Restarted, External: first, Reason: "d"},
		{},
		{Kind: backends.Announced, Reason: "the announcement, repeated"},
		{Kind: 255},
		{Kind: backends.Announced, Reason: "by another protocol"},
		{Kind: backends.Restarted, Reason: "e"},
		{Kind: backends.Restarted, Reason: "the same restart"},
		{Kind: backends.Announced, Reason: "the same restart"},
	} {
		switch c.Kind {
		case 0:
			time.Sleep(mergeInterval)
			continue
		case 255:
			time.Sleep(repeatInterval)
			continue
		}
		w.printChange(observedChange{by, c})
	}
	got := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d `).ReplaceAllString(stdout.String(), "")
	const want = `address 45.45.45.1, by PCP
address changed 192.0.2.1, by PCP: external address 45.45.45.9, was 45.45.45.1 (a)
restarted 192.0.2.1, by PCP (b; c)
address changed 192.0.2.1, by PCP: external address 45.45.45.1, was 45.45.45.9 (the gateway reports another address)
announced 192.0.2.1, by PCP (by another protocol)
restarted 192.0.2.1, by PCP (e)
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestCurrentRoute(t *testing.T) {
	t.Parallel()
	named := netip.MustParseAddrPort("127.0.0.1:5351") // no route leads to it
	if got := currentRoute(&settings{gateway: named}); got != (route{gateway: named}) || got.text() != named.String() {
		t.Errorf("unexpected route %+v: %s", got, got.text())
	}
	got := currentRoute(&settings{iface: "no-such-interface"})
	if got.gateway.IsValid() || got.reason == "" || got.text() != "none: "+got.reason {
		t.Errorf("unexpected route %+v: %s", got, got.text())
	}
	for want, w := range map[string]route{
		"192.0.2.1 on eth0, from 192.0.2.9": {
			gateway: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 0), iface: "eth0", local: netip.MustParseAddr("192.0.2.9"),
		},
		"no next hop on tun0, from 10.2.0.2": {iface: "tun0", local: netip.MustParseAddr("10.2.0.2")},
	} {
		if got := w.text(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
