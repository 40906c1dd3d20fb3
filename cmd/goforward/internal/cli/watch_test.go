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
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
)

// watched is a watch under way, on a network that the test changes.
type watchTest struct {
	t         *testing.T
	lines     *bufio.Reader
	interrupt context.CancelFunc
	code      chan int
	stderr    bytes.Buffer // to be read when it has ended

	mu      sync.Mutex
	route   route
	changed chan struct{}
}

func startWatch(t *testing.T, way route, every time.Duration, args ...string) *watchTest {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	r, out := io.Pipe()
	w := &watchTest{t: t, lines: bufio.NewReader(r), interrupt: interrupt, code: make(chan int, 1), route: way, changed: make(chan struct{}, 1)}
	a := newApp(out, &w.stderr)
	a.pollInterval, a.currentRoute, a.watchNetwork = every, w.currentRoute, w.watchNetwork
	go func() {
		defer func() { _ = out.Close() }()
		w.code <- a.run(ctx, append([]string{"watch", "--json"}, args...))
	}()
	t.Cleanup(func() {
		interrupt()
		_ = r.Close()
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

// move changes the network.
func (w *watchTest) setRoute(way route) {
	w.mu.Lock()
	w.route = way
	w.mu.Unlock()
	w.changed <- struct{}{}
}

// next is what it tells next, which is to be of a kind.
func (w *watchTest) next(event string) watchRecord {
	w.t.Helper()
	line, err := w.lines.ReadBytes('\n')
	if err != nil {
		w.t.Fatalf("%v; it ended with %d: %s", err, <-w.code, &w.stderr)
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

// The way out is another, then there is none, then it is back.
func TestWatchRouteChanges(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{})
	home := route{gateway: gw.Addr(), iface: "eth0", local: netip.MustParseAddr("127.0.0.1")}
	w := startWatch(t, home, time.Hour, "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "natpmp")
	arrives := func(way route) {
		t.Helper()
		r := w.next("gateway")
		if len(r.Protocols) == 0 && r.Interface == way.iface {
			r = w.next("gateway") // first that it is there, then what it speaks
		}
		if r.Interface != way.iface || r.Local != way.local.String() || len(r.Protocols) != 1 || r.Protocols[0] != "natpmp" {
			t.Errorf("%+v, want %+v", r, way)
		}
		if r := w.next("address"); r.IP.String() != "45.45.45.1" || r.Backend != "natpmp" {
			t.Errorf("%+v", r)
		}
	}
	arrives(home)
	w.changed <- struct{}{} // of something else
	wifi := route{gateway: gw.Addr(), iface: "wlan0", local: netip.MustParseAddr("127.0.0.2")}
	w.setRoute(wifi)
	arrives(wifi)
	w.setRoute(route{reason: "no route"})
	if r := w.next("gateway"); r.Gateway != "" || r.Reason != "no route" {
		t.Errorf("%+v", r)
	}
	w.setRoute(home)
	arrives(home)
	w.finish()
}

// A gateway that is gone is looked for, and one that does not announce that its
// address is another is asked.
func TestWatchPolls(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Announce: netip.MustParseAddrPort("127.0.0.1:0")})
	at := route{gateway: gw.Addr()}
	w := startWatch(t, at, 10*time.Millisecond, "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "natpmp", "--timeout", "1")
	w.next("gateway")
	w.next("address")
	gw.SetExternal(netip.MustParseAddr("45.45.45.9"))
	if r := w.next("address_changed"); r.IP.String() != "45.45.45.9" || r.Previous != "45.45.45.1" || r.Backend != "natpmp" || r.Gateway != gw.Addr().String() {
		t.Errorf("%+v", r)
	}
	remove := gw.Inject(gatewaytest.Fault{Drop: true})
	w.setRoute(route{gateway: gw.Addr(), iface: "eth0"})
	w.next("gateway")
	if r := w.next("error"); r.Kind != "no_reply" || r.Next == "" || r.Reason == "" {
		t.Errorf("%+v", r)
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

// Several backends notice that the address is another: it is told once. What else
// they notice is told of each.
func TestWatchDeduplicatesChanges(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	w := &watchSession{app: newApp(&stdout, &stderr)}
	by := availableBackend{protocol: protocol{name: "pcp", title: "PCP"}, gateway: netip.MustParseAddrPort("192.0.2.1:0")}
	first, second := netip.MustParseAddr("45.45.45.1"), netip.MustParseAddr("45.45.45.9")
	w.printAddress(by, first)
	for _, c := range []backends.Change{
		{Kind: backends.AddressChanged, External: first, Reason: "no news"},
		{Kind: backends.AddressChanged, External: second, Reason: "a"},
		{Kind: backends.AddressChanged, External: second, Reason: "no news"},
		{Kind: backends.Restarted, Reason: "b\nc"},
		{Kind: backends.Restarted, External: first, Reason: "d"},
	} {
		w.printChange(observedChange{by, c})
	}
	got := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d `).ReplaceAllString(stdout.String(), "")
	const want = `address 45.45.45.1, by PCP
address changed 192.0.2.1, by PCP: external address 45.45.45.9, was 45.45.45.1 (a)
restarted 192.0.2.1, by PCP (b; c)
restarted 192.0.2.1, by PCP: external address 45.45.45.1, was 45.45.45.9 (d)
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestCurrentRoute(t *testing.T) {
	t.Parallel()
	named := netip.MustParseAddrPort("127.0.0.1:5351") // which no way leads to
	if got := currentRoute(&settings{gateway: named}); got != (route{gateway: named}) || got.text() != named.String() {
		t.Errorf("%+v: %s", got, got.text())
	}
	got := currentRoute(&settings{iface: "no-such-interface"})
	if got.gateway.IsValid() || got.reason == "" || got.text() != "none: "+got.reason {
		t.Errorf("%+v: %s", got, got.text())
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
