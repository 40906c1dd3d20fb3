package forward_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/holders"
	"go.uber.org/goleak"
)

// programsDir is the runtime directory of the programs that tests start.
var programsDir string

// runtimeEnvironment returns variables with which a program uses a directory for runtime files
// and temporary files.
func runtimeEnvironment(dir string) []string {
	return []string{"XDG_RUNTIME_DIR=" + dir, "TMPDIR=" + dir, "TMP=" + dir}
}

// setEnv sets variables of the environment until restore is called.
func setEnv(variables []string) (restore func()) {
	var undo []func() error
	for _, variable := range variables {
		name, value, _ := strings.Cut(variable, "=")
		if before, isSet := os.LookupEnv(name); isSet {
			undo = append(undo, func() error { return os.Setenv(name, before) })
		} else {
			undo = append(undo, func() error { return os.Unsetenv(name) })
		}
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	return func() {
		for _, f := range undo {
			if err := f(); err != nil {
				panic(err)
			}
		}
	}
}

// TestMain checks that no goroutine remains. It skips ExampleIPv6, which cannot skip itself,
// if this host has no IPv6. The tests and their programs use directories of their own, so that
// they do not use the registry of the user.
func TestMain(m *testing.M) {
	if config := os.Getenv(programEnv); config != "" {
		runProgram(config)
		return
	}
	dir, err := os.MkdirTemp("", "goforward-runtime-*")
	if err != nil {
		panic(err)
	}
	programsDir = dir
	restore := setEnv(runtimeEnvironment(dir))
	_, _ = holders.Default() // keeps the directories of this time
	restore()
	flag.Parse()
	if conn, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		_ = conn.Close()
	} else if skip := flag.Lookup("test.skip"); skip.Value.String() == "" {
		fmt.Fprintln(os.Stderr, "IPV6 NOT TESTED:", err)
		_ = skip.Value.Set("^ExampleIPv6$")
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// gatewayAndForwarder starts a gateway, and returns it with a Forwarder whose Config
// names the gateway.
func gatewayAndForwarder(t *testing.T, config forward.Config, router gatewaytest.Config) (*gatewaytest.Gateway, *forward.Forwarder) {
	t.Helper()
	gw, err := gatewaytest.Start(router)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	config.Gateway = gw.Addr()
	if !config.Test.Announce.IsValid() {
		config.Test.Announce = netip.MustParseAddrPort("127.0.0.1:0")
	}
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return gw, f
}

// gatewayWithAnnouncements starts a gateway, and returns it with a Forwarder that
// receives its announcements.
func gatewayWithAnnouncements(t *testing.T) (*gatewaytest.Gateway, *forward.Forwarder) {
	t.Helper()
	gw := gatewaytest.New(t, gatewaytest.Config{})
	f, err := forward.New(&forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{Announce: gw.AnnounceAddr()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return gw, f
}

// gatewayWithUPnP is gatewayAndForwarder with a Forwarder that also searches for the UPnP
// device of the gateway.
func gatewayWithUPnP(t *testing.T, config forward.Config, router gatewaytest.Config) (*gatewaytest.Gateway, *forward.Forwarder) {
	t.Helper()
	gw, err := gatewaytest.Start(router)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	config.Gateway, config.Test.SSDP = gw.Addr(), gw.SSDP()
	config.Test.Announce, config.Test.Notify = netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.1:0")
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return gw, f
}

// startGateway starts a gateway that is closed at the end of the test.
func startGateway(t *testing.T, c gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// newLoopbackForwarder returns a Forwarder that receives announcements and notifications
// on loopback only.
func newLoopbackForwarder(t *testing.T, c forward.Config) *forward.Forwarder {
	if c.Gateway.Addr().Is4() && !c.Gateway.Addr().IsLoopback() {
		c.Test.SSDP = netip.MustParseAddrPort("127.0.0.1:9")
	}
	t.Helper()
	c.Test.Announce = netip.MustParseAddrPort("127.0.0.1:0")
	c.Test.Notify = netip.MustParseAddrPort("127.0.0.1:0")
	f, err := forward.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// newForwarder returns a Forwarder that uses fake gateways.
func newForwarder(t *testing.T, config forward.Config, ms ...*fakeGateway) *forward.Forwarder {
	t.Helper()
	for _, gw := range ms {
		config.Backends = append(config.Backends, gw)
	}
	f, err := forward.New(&config)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// newForwarderWith returns a Forwarder that uses one backend and is closed at the end of
// the test.
func newForwarderWith(t *testing.T, b backends.Backend) *forward.Forwarder {
	t.Helper()
	f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// enable8080 enables a mapping of TCP port 8080.
func enable8080(t *testing.T, f *forward.Forwarder) *forward.Mapping {
	t.Helper()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// enableSequentially enables mappings one second apart.
func enableSequentially(t *testing.T, f *forward.Forwarder, opts ...forward.Option) {
	t.Helper()
	for _, opt := range opts {
		if _, err := f.Enable(t.Context(), opt); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
}

// canceledContext returns a context that has ended.
func canceledContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// testContext returns a context that limits how long a test waits.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// sleepContext sleeps until d has passed or ctx ends.
func sleepContext(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// eventually polls a condition until it is true or d has passed, and returns the last
// result.
func eventually(t *testing.T, d time.Duration, condition func() bool) bool {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		if condition() {
			return true
		}
	}
	return condition()
}

// eventRecorder records events as "kind port".
type eventRecorder struct {
	mu     sync.Mutex
	events []string
}

func (r *eventRecorder) record(e forward.Event) {
	port := uint16(0)
	if len(e.Grants) > 0 {
		port = e.Grants[0].External.Port()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprint(e.Kind, " ", port))
}

// want compares the recorded events with the expected ones, and forgets them.
func (r *eventRecorder) want(t *testing.T, events ...string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(events, r.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	r.events = nil
}

// peek returns the recorded events.
func (r *eventRecorder) peek() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// blockingHandler is a slog handler. It blocks on records whose message contains a text
// until release is closed.
type blockingHandler struct {
	text    string
	release chan struct{}
}

func (h *blockingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *blockingHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h *blockingHandler) WithGroup(string) slog.Handler { return h }

func (h *blockingHandler) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.text) {
		<-h.release
	}
	return nil
}

func isMap(r gatewaytest.Request) bool { return r.Op == "map" }

func isUnmap(r gatewaytest.Request) bool { return r.Op == "unmap" }

// countRequests returns how many requests that match the gateway received.
func countRequests(gw *gatewaytest.Gateway, match func(gatewaytest.Request) bool) (n int) {
	for _, r := range gw.Requests() {
		if match(r) {
			n++
		}
	}
	return n
}

// awaitRemapped waits until a gateway that has restarted has a mapping. The number of
// requests that it waits for grows, because requests before the restart are counted too.
func awaitRemapped(t *testing.T, gw *gatewaytest.Gateway) {
	t.Helper()
	for n := 1; len(gw.Table()) == 0; n++ {
		if _, err := gw.AwaitRequests(testContext(t), n, func(r gatewaytest.Request) bool { return r.Op == "map" }); err != nil {
			t.Fatal(err)
		}
	}
}
