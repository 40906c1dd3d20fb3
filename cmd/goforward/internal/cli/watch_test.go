package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
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
	if r := w.next("error"); r.Kind != "no_gateway" || r.Next == "" {
		t.Errorf("unexpected object: %+v", r)
	}
	w.setRoute(home)
	wantRoute(home)
	w.finish()
}

// TestWatchStartsEarly checks that watch waits for a route, a reply and an address, and that an
// invalid command line fails at once.
func TestWatchStartsEarly(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{})
	args := []string{"-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "natpmp", "--timeout", "1"}
	w := startWatch(t, route{reason: "no route"}, time.Hour, args...)
	if r := w.next("error"); r.Kind != "no_gateway" || r.Reason != "no gateway that forwards ports: no route" || r.Next == "" {
		t.Errorf("unexpected object: %+v", r)
	}
	remove := gw.Inject(gatewaytest.Fault{Drop: true})
	w.setRoute(route{gateway: gw.Addr()})
	r := w.next("gateway")
	if len(r.Protocols) != 0 {
		t.Errorf("unexpected object: %+v", r)
	}
	if r := w.next("error"); r.Kind != "no_reply" || r.Gateway != gw.Addr().String() {
		t.Errorf("unexpected object: %+v", r)
	}
	remove()
	w.setRoute(route{gateway: gw.Addr(), iface: "eth0"})
	w.next("gateway")
	if r := w.next("gateway"); len(r.Protocols) != 1 {
		t.Errorf("unexpected object: %+v", r)
	}
	w.next("address")
	w.finish()

	// The address of --source disappears just after the route was determined.
	w = startWatch(t, route{gateway: gw.Addr()}, time.Hour, append(args, "--source", "45.45.45.99")...)
	if r := w.next("error"); r.Reason != "--source 45.45.45.99 is not an address of this host" || r.Next == "" {
		t.Errorf("unexpected object: %+v", r)
	}
	w.finish()

	for _, invalid := range [][]string{append(args, "--source", "::1"), {"-g", "::1", "--backend", "natpmp"}, {"--source", "0.0.0.0"}} {
		if got := run(t, nil, append([]string{"watch"}, invalid...)...); got.code != exitUsage || got.stdout != "" {
			t.Errorf("%q: %+v", invalid, got)
		}
	}
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// take returns what was written since the last call.
func (b *lockedBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

// TestWatchBackoff checks the times of the attempts while there is no route.
func TestWatchBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		network := &watchTest{route: route{reason: "no route"}, changed: make(chan struct{}, 1)}
		var stdout lockedBuffer
		w := &watchSession{app: newApp(&stdout, io.Discard), networkChanged: network.changed}
		w.app.currentRoute = network.currentRoute
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		start := time.Now()
		go func() {
			w.follow(ctx)
			close(ended)
		}()
		want := func(lines ...string) {
			t.Helper()
			synctest.Wait()
			var b strings.Builder
			for _, line := range lines {
				seconds, text, _ := strings.Cut(line, " ")
				at, next, _ := strings.Cut(seconds, "-")
				clock := func(seconds string) string {
					n, _ := strconv.Atoi(seconds)
					return clockText(start.Add(time.Duration(n) * time.Second))
				}
				b.WriteString(clock(at) + " " + text)
				if next != "" {
					b.WriteString("; next try at " + clock(next))
				}
				b.WriteString("\n")
			}
			if got := stdout.take(); got != b.String() {
				t.Errorf("got\n%swant\n%s", got, &b)
			}
		}
		const reason = "error no gateway that forwards ports: "
		want("0-1 " + reason + "no route")
		network.changed <- struct{}{} // a change of something else
		want()
		time.Sleep(3*time.Minute + 5*time.Second)
		want("1-3 error as before", "3-7 error as before", "7-15 error as before", "15-31 error as before", "31-63 error as before",
			"63-123 error as before", "123-183 error as before", "183-243 error as before")
		network.setRoute(route{reason: "no interface"})
		want("185 gateway none: no interface", "185-186 "+reason+"no interface")
		network.mu.Lock() // a change without a notification
		network.route = route{reason: "no address"}
		network.mu.Unlock()
		time.Sleep(time.Second)
		want("186 gateway none: no address", "186-188 "+reason+"no address")
		cancel()
		<-ended
		want()
	})
}

// TestWatchRepeatedError checks that the reason of an error is printed again for another
// gateway.
func TestWatchRepeatedError(t *testing.T) {
	t.Parallel()
	var stdout bytes.Buffer
	w := &watchSession{app: newApp(&stdout, io.Discard)}
	for range 2 {
		w.printGateway(nil)
		w.printError(errHookFailed, time.Time{})
		w.printError(errHookFailed, time.Time{})
	}
	got := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d `).ReplaceAllString(stdout.String(), "")
	if want := strings.Repeat("gateway none: \nerror no\nerror as before\n", 2); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
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
	for want, s := range map[string]settings{
		"--interface no-such-interface: no such interface":   {gateway: named, iface: "no-such-interface"},
		"--source 192.0.2.99 is not an address of this host": {gateway: named, source: netip.MustParseAddr("192.0.2.99")},
	} {
		if got := currentRoute(&s); got != (route{reason: want}) {
			t.Errorf("unexpected route %+v, want %s", got, want)
		}
	}
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
