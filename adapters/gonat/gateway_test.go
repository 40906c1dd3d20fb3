package nat_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	nat "github.com/natforward/goforward/adapters/gonat"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a test router, a Forwarder for it and a Gateway. The protocols are those of
// the Forwarder, in order of preference.
func start(t *testing.T, router gatewaytest.Config, protocols ...string) (*gatewaytest.Gateway, *forward.Forwarder, *nat.Gateway) {
	t.Helper()
	gw, err := gatewaytest.Start(router)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	c := gw.Config()
	c.Protocols = protocols
	f, err := forward.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	g := nat.New(f)
	t.Cleanup(func() { _ = g.Close() })
	return gw, f, g
}

// startGreeter starts a TCP server that sends "hello" on each connection, and returns its
// port.
func startGreeter(t *testing.T) int {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "hello")
			_ = conn.Close()
		}
	})
	return ln.Addr().(*net.TCPAddr).Port
}

// dialFromOutside connects to an external port from outside, and checks that the greeter
// responds.
func dialFromOutside(t *testing.T, gw *gatewaytest.Gateway, port int) error {
	t.Helper()
	conn, err := gw.Dial(t.Context(), "tcp", netip.AddrPortFrom(gw.External(), uint16(port)).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	return nil
}

// occupyPort maps an external TCP port to another host.
func occupyPort(t *testing.T, gw *gatewaytest.Gateway, port int) {
	t.Helper()
	err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP,
		Internal: netip.MustParseAddrPort("127.0.0.9:80"), External: netip.AddrPortFrom(gw.External(), uint16(port)),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestBackends checks with each protocol that AddPortMapping returns the granted port, and
// that DeletePortMapping deletes the mapping.
func TestBackends(t *testing.T) {
	for backend, wantType := range map[string]string{"natpmp": "NAT-PMP", "pcp": "PCP", "upnp": "UPnP"} {
		t.Run(backend, func(t *testing.T) {
			gw, _, g := start(t, gatewaytest.Config{}, backend)
			internal := startGreeter(t)
			occupyPort(t, gw, internal)
			external, err := g.AddPortMapping(t.Context(), "tcp", internal, "greeter", 0)
			if err != nil {
				t.Fatal(err)
			}
			if external == internal {
				t.Fatalf("port %d was granted, but another host has it", internal)
			}
			if err := dialFromOutside(t, gw, external); err != nil {
				t.Error(err)
			}
			if got := g.Type(); got != wantType {
				t.Errorf("Type is %q, want %q", got, wantType)
			}
			if err := g.DeletePortMapping(t.Context(), "tcp", internal); err != nil {
				t.Error(err)
			}
			if err := dialFromOutside(t, gw, external); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial after the deletion: %v, want ECONNREFUSED", err)
			}
			if table := gw.Table(); len(table) != 1 || g.MappingCount() != 0 {
				t.Errorf("the gateway has %v, the Gateway holds %d mappings", table, g.MappingCount())
			}
		})
	}
}

// TestAddresses checks the device, external and internal addresses, also after the external
// address changed.
func TestAddresses(t *testing.T) {
	gw, _, g := start(t, gatewaytest.Config{})
	for _, test := range []struct {
		name string
		get  func() (net.IP, error)
		want netip.Addr
	}{
		{"device", g.GetDeviceAddress, gw.Addr().Addr()},
		{"external", g.GetExternalAddress, gw.External()},
		{"internal", g.GetInternalAddress, netip.MustParseAddr("127.0.0.1")},
	} {
		if got, err := test.get(); err != nil || len(got) != net.IPv4len || !got.Equal(test.want.AsSlice()) {
			t.Errorf("%s address %v, %v, want %v", test.name, got, err, test.want)
		}
	}
	if got := g.Type(); got != "NAT-PMP" {
		t.Errorf("Type is %q", got)
	}
	changed := netip.MustParseAddr("45.45.45.99")
	gw.SetExternal(changed)
	if got, err := g.GetExternalAddress(); err != nil || !got.Equal(changed.AsSlice()) {
		t.Errorf("external address %v, %v, want %v", got, err, changed)
	}
}

// TestExternalAddressRefused checks that GetExternalAddress returns the address of an active
// mapping if the gateway refuses the request, and fails if there is no mapping.
func TestExternalAddressRefused(t *testing.T) {
	gw, _, g := start(t, gatewaytest.Config{Protocols: []string{"natpmp"}}, "natpmp")
	internal := startGreeter(t)
	if _, err := g.AddPortMapping(t.Context(), "tcp", internal, "", 0); err != nil {
		t.Fatal(err)
	}
	gw.Inject(gatewaytest.Fault{Result: 3})
	if got, err := g.GetExternalAddress(); err != nil || !got.Equal(gw.External().AsSlice()) {
		t.Errorf("with a mapping: external address %v, %v, want %v", got, err, gw.External())
	}
	if err := g.DeletePortMapping(t.Context(), "tcp", internal); err == nil {
		t.Error("DeletePortMapping succeeded although the gateway refuses all requests")
	}
	if got, err := g.GetExternalAddress(); !errors.Is(err, nat.ErrNoExternalAddress) || !errors.Is(err, backends.ErrNetworkFailure) {
		t.Errorf("without a mapping: external address %v, %v, want ErrNoExternalAddress", got, err)
	}
}

// TestAddPortMappingRepeated checks that a repeated call sends nothing, even with another
// timeout and description. It also checks that the TCP and UDP mappings of a port are
// independent.
func TestAddPortMappingRepeated(t *testing.T) {
	gw, _, g := start(t, gatewaytest.Config{})
	internal := startGreeter(t)
	first, err := g.AddPortMapping(t.Context(), "tcp", internal, "one", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	gw.ResetStats()
	for _, protocol := range []string{"tcp", "TCP"} {
		again, err := g.AddPortMapping(t.Context(), protocol, internal, "two", 0)
		if err != nil || again != first {
			t.Errorf("repeated call: port %d, %v, want %d", again, err, first)
		}
	}
	if requests := gw.Requests(); len(requests) != 0 {
		t.Errorf("%d requests were sent, the first is %s", len(requests), requests[0].Name())
	}
	udp, err := g.AddPortMapping(t.Context(), "udp", internal, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.DeletePortMapping(t.Context(), "tcp", internal); err != nil {
		t.Fatal(err)
	}
	table := gw.Table()
	if len(table) != 1 || table[0].Protocol != backends.UDP || table[0].External.Port() != uint16(udp) {
		t.Errorf("the gateway has %v", table)
	}
}

// TestMappingLifetime checks the requested lifetime for several timeouts. A timeout of zero
// or less does not delete the mapping.
func TestMappingLifetime(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{
		0: forward.DefaultLifetime, -time.Second: forward.DefaultLifetime,
		time.Minute: time.Minute, time.Millisecond: time.Second,
	} {
		gw, _, g := start(t, gatewaytest.Config{ManualClock: true})
		if _, err := g.AddPortMapping(t.Context(), "udp", 4001, "", timeout); err != nil {
			t.Fatal(err)
		}
		if table := gw.Table(); len(table) != 1 || table[0].Remaining != want {
			t.Errorf("timeout %v: the gateway has %v, want a lifetime of %v", timeout, table, want)
		}
	}
}

// TestPortChangesAfterRestart restarts the gateway and maps the old external port to another
// host. AddPortMapping must return the new port.
func TestPortChangesAfterRestart(t *testing.T) {
	gw, f, g := start(t, gatewaytest.Config{})
	internal := startGreeter(t)
	before, err := g.AddPortMapping(t.Context(), "tcp", internal, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	occupyPort(t, gw, before)
	if err := f.Refresh(t.Context(), forward.TCP(0)); err != nil { // as an announcement or a renewal would do
		t.Fatal(err)
	}
	after, err := g.AddPortMapping(t.Context(), "tcp", internal, "", 0)
	if err != nil || after == before {
		t.Fatalf("port %d before the restart, then %d, %v; want another port", before, after, err)
	}
	if err := dialFromOutside(t, gw, after); err != nil {
		t.Error(err)
	}
	if err := g.DeletePortMapping(t.Context(), "tcp", internal); err != nil {
		t.Error(err)
	}
	if table := gw.Table(); len(table) != 1 {
		t.Errorf("the gateway has %v", table)
	}
}

// TestLostMappingRestored checks that AddPortMapping requests a lost mapping at once and
// returns the error. It also checks that the Forwarder keeps retrying in the background.
func TestLostMappingRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBackend{}
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{b}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		g := nat.New(f)
		defer g.Close()
		if _, err := g.AddPortMapping(t.Context(), "tcp", 80, "", time.Hour); err != nil {
			t.Fatal(err)
		}
		b.setError(backends.ErrNetworkFailure)
		time.Sleep(2 * time.Hour)
		if _, err := g.AddPortMapping(t.Context(), "tcp", 80, "", time.Hour); !errors.Is(err, backends.ErrNetworkFailure) {
			t.Errorf("AddPortMapping of a lost mapping: %v, want ErrNetworkFailure", err)
		}
		b.setError(nil)
		if port, err := g.AddPortMapping(t.Context(), "tcp", 80, "", time.Hour); err != nil || port != 80 {
			t.Errorf("AddPortMapping requests the lost mapping: port %d, %v, want 80", port, err)
		}
		b.setError(backends.ErrNetworkFailure)
		time.Sleep(2 * time.Hour)
		b.setError(nil)
		time.Sleep(2 * time.Hour)
		requests := b.requestCount()
		if port, err := g.AddPortMapping(t.Context(), "tcp", 80, "", time.Hour); err != nil || port != 80 || b.requestCount() != requests {
			t.Errorf("after the mapping was restored: port %d, %v, want 80 without a request", port, err)
		}
	})
}

// TestRefusedNotHeld checks that the Gateway holds no mapping if the first call fails.
func TestRefusedNotHeld(t *testing.T) {
	gw, f, g := start(t, gatewaytest.Config{}, "natpmp")
	stopRefusing := gw.Inject(gatewaytest.Fault{Result: 2})
	if port, err := g.AddPortMapping(t.Context(), "tcp", 8080, "", 0); port != 0 || !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("AddPortMapping: port %d, %v, want ErrNotAuthorized", port, err)
	}
	entries, err := f.Mappings(t.Context())
	if len(entries) != 0 || g.MappingCount() != 0 {
		t.Errorf("the Forwarder lists %v, %v; the Gateway holds %d mappings; want none", entries, err, g.MappingCount())
	}
	stopRefusing()
	if _, err := g.AddPortMapping(t.Context(), "tcp", 8080, "", 0); err != nil {
		t.Error(err)
	}
}

// TestDisabledByForwarder checks that AddPortMapping creates a new mapping after the program
// disabled the first one through the Forwarder.
func TestDisabledByForwarder(t *testing.T) {
	gw, f, g := start(t, gatewaytest.Config{})
	for range 2 {
		if _, err := g.AddPortMapping(t.Context(), "tcp", 8080, "", 0); err != nil {
			t.Fatal(err)
		}
		if table := gw.Table(); len(table) != 1 {
			t.Fatalf("the gateway has %v", table)
		}
		if _, err := f.DisableAll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInvalidArguments checks that invalid arguments fail and send nothing. Deleting a mapping
// that does not exist succeeds.
func TestInvalidArguments(t *testing.T) {
	gw, _, g := start(t, gatewaytest.Config{})
	for _, c := range []struct {
		protocol string
		port     int
	}{{"", 80}, {"sctp", 80}, {"6", 0}, {"both", 80}, {"tcp", 0}, {"tcp", -1}, {"udp", 65536}, {"tcp", 1 << 30}} {
		if port, err := g.AddPortMapping(t.Context(), c.protocol, c.port, "", 0); port != 0 || !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("AddPortMapping %v: port %d, %v, want ErrInvalid", c, port, err)
		}
		if err := g.DeletePortMapping(t.Context(), c.protocol, c.port); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("DeletePortMapping %v: %v, want ErrInvalid", c, err)
		}
	}
	if err := g.DeletePortMapping(t.Context(), "tcp", 80); err != nil {
		t.Errorf("DeletePortMapping without a mapping: %v", err)
	}
	if requests := gw.Requests(); len(requests) != 0 || g.MappingCount() != 0 {
		t.Errorf("%d requests were sent, %d mappings are held, want none", len(requests), g.MappingCount())
	}
}

// TestConcurrentCalls checks that concurrent calls create one mapping for each port, and that
// no mapping remains after each goroutine deleted it.
func TestConcurrentCalls(t *testing.T) {
	gw, _, g := start(t, gatewaytest.Config{}, "natpmp")
	const ports, callers = 8, 8
	callAll := func(call func(port int)) {
		var wg sync.WaitGroup
		for i := range ports * callers {
			wg.Go(func() { call(20000 + i%ports) })
		}
		wg.Wait()
	}
	callAll(func(port int) {
		if got, err := g.AddPortMapping(t.Context(), "udp", port, "", 0); err != nil || got != port {
			t.Errorf("port %d: %d, %v", port, got, err)
		}
	})
	if n := gw.Stats().Requests["natpmp map udp"]; n != ports {
		t.Errorf("%d map requests for %d ports", n, ports)
	}
	callAll(func(port int) {
		_, _ = g.AddPortMapping(t.Context(), "udp", port, "", 0)
		if err := g.DeletePortMapping(t.Context(), "udp", port); err != nil {
			t.Errorf("DeletePortMapping %d: %v", port, err)
		}
	})
	if table := gw.Table(); len(table) != 0 || g.MappingCount() != 0 {
		t.Errorf("the gateway has %v, the Gateway holds %d mappings, want none", table, g.MappingCount())
	}
}

// TestContextAndCloseEndCalls checks that a call in progress returns if its context ends or
// if the Gateway is closed.
func TestContextAndCloseEndCalls(t *testing.T) {
	gw, _, g := start(t, gatewaytest.Config{}, "natpmp")
	if _, err := g.AddPortMapping(t.Context(), "tcp", 8080, "", 0); err != nil {
		t.Fatal(err)
	}
	dropped := make(chan struct{}, 1)
	stopDropping := gw.Inject(gatewaytest.Fault{Drop: true, Match: func(gatewaytest.Request) bool {
		select {
		case dropped <- struct{}{}:
		default:
		}
		return true
	}})
	cause := errors.New("cancelled by the test")
	for name, call := range map[string]func(context.Context) error{
		"add":    func(ctx context.Context) error { _, err := g.AddPortMapping(ctx, "udp", 8080, "", 0); return err },
		"delete": func(ctx context.Context) error { return g.DeletePortMapping(ctx, "tcp", 8080) },
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- call(ctx) }()
		<-dropped
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) {
			t.Errorf("%s: %v, want the cause of the cancellation", name, err)
		}
		select {
		case <-dropped:
		default:
		}
	}
	done := make(chan error, 1)
	go func() { _, err := g.AddPortMapping(t.Context(), "udp", 8081, "", 0); done <- err }()
	<-dropped
	stopDropping()
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
		t.Errorf("AddPortMapping during Close: %v, want ErrClosed", err)
	}
}

// TestClose checks that Close deletes the mappings of the Gateway and no others, and that
// later calls fail. The Forwarder stays open.
func TestClose(t *testing.T) {
	gw, f, g := start(t, gatewaytest.Config{})
	if _, err := f.Enable(t.Context(), forward.UDP(9000)); err != nil {
		t.Fatal(err)
	}
	for port := 8080; port < 8084; port++ {
		if _, err := g.AddPortMapping(t.Context(), "tcp", port, "", 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
	if table := gw.Table(); len(table) != 1 || table[0].Protocol != backends.UDP {
		t.Errorf("the gateway has %v", table)
	}
	_, add := g.AddPortMapping(t.Context(), "tcp", 8080, "", 0)
	_, device := g.GetDeviceAddress()
	_, external := g.GetExternalAddress()
	_, internal := g.GetInternalAddress()
	for _, err := range []error{add, device, external, internal, g.DeletePortMapping(t.Context(), "tcp", 8080)} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("a call after Close: %v, want ErrClosed", err)
		}
	}
	if got := g.Type(); got != "unknown" {
		t.Errorf("after Close: Type is %q, want unknown", got)
	}
}

// fakeBackend grants each request and counts the requests. If err is set, it fails with err.
type fakeBackend struct {
	mu       sync.Mutex
	err      error
	requests int
}

func (b *fakeBackend) setError(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *fakeBackend) requestCount() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests
}

func (b *fakeBackend) countRequest() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	return b.err
}

func (*fakeBackend) String() string                  { return "fake" }
func (*fakeBackend) Close() error                    { return nil }
func (*fakeBackend) Supports(backends.Request) error { return nil }

func (b *fakeBackend) Unmap(context.Context, backends.Mapping) error { return b.countRequest() }

func (b *fakeBackend) ExternalAddr(context.Context) (netip.Addr, error) {
	return netip.Addr{}, b.countRequest()
}

func (b *fakeBackend) Renew(ctx context.Context, _ backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return b.Map(ctx, r)
}

func (b *fakeBackend) Map(_ context.Context, r backends.Request) (backends.Mapping, error) {
	if err := b.countRequest(); err != nil {
		return backends.Mapping{}, err
	}
	return backends.Mapping{
		Backend: "fake", Protocol: r.Protocol, Internal: r.Internal, Lifetime: r.Lifetime, Granted: time.Now(),
		External: netip.AddrPortFrom(netip.MustParseAddr("45.45.45.1"), r.External.Port()),
	}, nil
}
