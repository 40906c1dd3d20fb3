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
type watched struct {
	t         *testing.T
	lines     *bufio.Reader
	interrupt context.CancelFunc
	code      chan int
	stderr    bytes.Buffer // to be read when it has ended

	mu      sync.Mutex
	way     wayOut
	changed chan struct{}
}

func startWatch(t *testing.T, way wayOut, every time.Duration, args ...string) *watched {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	r, out := io.Pipe()
	w := &watched{t: t, lines: bufio.NewReader(r), interrupt: interrupt, code: make(chan int, 1), way: way, changed: make(chan struct{}, 1)}
	a := newApp(out, &w.stderr)
	a.watchEvery, a.wayOut, a.network = every, w.at, w.network
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

func (w *watched) at(*settings) wayOut {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.way
}

func (w *watched) network(ctx context.Context, notify func()) error {
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
func (w *watched) move(way wayOut) {
	w.mu.Lock()
	w.way = way
	w.mu.Unlock()
	w.changed <- struct{}{}
}

// next is what it tells next, which is to be of a kind.
func (w *watched) next(event string) watchRecord {
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

func (w *watched) finish() {
	w.t.Helper()
	w.interrupt()
	if code := <-w.code; code != exitDone || w.stderr.Len() > 0 {
		w.t.Errorf("exit code %d: %s", code, &w.stderr)
	}
}

// The way out is another, then there is none, then it is back.
func TestWatchMoves(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{})
	home := wayOut{gateway: gw.Addr(), iface: "eth0", local: netip.MustParseAddr("127.0.0.1")}
	w := startWatch(t, home, time.Hour, "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "natpmp")
	arrives := func(way wayOut) {
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
	wifi := wayOut{gateway: gw.Addr(), iface: "wlan0", local: netip.MustParseAddr("127.0.0.2")}
	w.move(wifi)
	arrives(wifi)
	w.move(wayOut{reason: "no route"})
	if r := w.next("gateway"); r.Gateway != "" || r.Reason != "no route" {
		t.Errorf("%+v", r)
	}
	w.move(home)
	arrives(home)
	w.finish()
}

// A gateway that is gone is looked for, and one that does not announce that its
// address is another is asked.
func TestWatchAsks(t *testing.T) {
	t.Parallel()
	gw := router(t, gatewaytest.Config{Announce: netip.MustParseAddrPort("127.0.0.1:0")})
	at := wayOut{gateway: gw.Addr()}
	w := startWatch(t, at, 10*time.Millisecond, "-g", gw.Addr().String(), "--announce", gw.AnnounceAddr().String(), "--backend", "natpmp", "--timeout", "1")
	w.next("gateway")
	w.next("address")
	gw.SetExternal(netip.MustParseAddr("45.45.45.9"))
	if r := w.next("address_changed"); r.IP.String() != "45.45.45.9" || r.Previous != "45.45.45.1" || r.Backend != "natpmp" || r.Gateway != gw.Addr().String() {
		t.Errorf("%+v", r)
	}
	remove := gw.Inject(gatewaytest.Fault{Drop: true})
	w.move(wayOut{gateway: gw.Addr(), iface: "eth0"})
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
func TestWatchTellsOnce(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	w := &watching{app: newApp(&stdout, &stderr)}
	by := found{opener: opener{name: "pcp", title: "PCP"}, gateway: netip.MustParseAddrPort("192.0.2.1:0")}
	first, second := netip.MustParseAddr("45.45.45.1"), netip.MustParseAddr("45.45.45.9")
	w.sayAddress(by, first)
	for _, c := range []backends.Change{
		{Kind: backends.AddressChanged, External: first, Reason: "no news"},
		{Kind: backends.AddressChanged, External: second, Reason: "a"},
		{Kind: backends.AddressChanged, External: second, Reason: "no news"},
		{Kind: backends.Restarted, Reason: "b\nc"},
		{Kind: backends.Restarted, External: first, Reason: "d"},
	} {
		w.sayChange(noticed{by, c})
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

func TestWayOutOf(t *testing.T) {
	t.Parallel()
	named := netip.MustParseAddrPort("127.0.0.1:5351") // which no way leads to
	if got := wayOutOf(&settings{gateway: named}); got != (wayOut{gateway: named}) || got.text() != named.String() {
		t.Errorf("%+v: %s", got, got.text())
	}
	got := wayOutOf(&settings{iface: "no-such-interface"})
	if got.gateway.IsValid() || got.reason == "" || got.text() != "none: "+got.reason {
		t.Errorf("%+v: %s", got, got.text())
	}
	for want, w := range map[string]wayOut{
		"192.0.2.1 by eth0, from 192.0.2.9": {
			gateway: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 0), iface: "eth0", local: netip.MustParseAddr("192.0.2.9"),
		},
		"no next hop by tun0, from 10.2.0.2": {iface: "tun0", local: netip.MustParseAddr("10.2.0.2")},
	} {
		if got := w.text(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
