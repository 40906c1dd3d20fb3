package forward_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestPackageLevel checks that the package-level calls share one Forwarder.
func TestPackageLevel(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	if err := forward.Configure(&forward.Config{DiscoveryTimeout: -1}); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Configure: %v", err)
	}
	if err := forward.Configure(&forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{Announce: netip.MustParseAddrPort("127.0.0.1:0")}}); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{1001, 1002, 1003} {
		if _, err := forward.Enable(forward.TCP(port)); err != nil {
			t.Fatal(err)
		}
	}
	if ip, err := forward.ExternalIP(); err != nil || ip != gw.External() {
		t.Errorf("ExternalIP: %v, %v", ip, err)
	}
	if ip, err := forward.LocalIP(); err != nil || !ip.IsLoopback() {
		t.Errorf("LocalIP: %v, %v", ip, err)
	}
	if err := forward.Disable(); err != nil {
		t.Error(err)
	}
	if err := forward.Refresh(forward.TCP(1001)); err != nil {
		t.Error(err)
	}
	if e, err := forward.MappingAt(1); err != nil || e.Mapping.Internal.Port() != 1002 {
		t.Errorf("MappingAt(1): %+v, %v", e, err)
	}
	if n, err := forward.DisableAll(forward.TCP(0)); err != nil || n != 2 {
		t.Errorf("DisableAll: %d, %v", n, err)
	}
	if entries, err := forward.Mappings(); err != nil || len(entries) != 0 || len(gw.Table()) != 0 {
		t.Errorf("Mappings: %v, %v; the gateway has %v", entries, err, gw.Table())
	}
	for range 2 {
		if err := forward.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLocalIP(t *testing.T) {
	_, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	if got, err := f.LocalIP(t.Context()); err != nil || got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("LocalIP: %v, %v", got, err)
	}
}

func TestExternalIP(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	if got, err := f.ExternalIP(t.Context()); err != nil || got != externalAddr {
		t.Errorf("ExternalIP: %v, %v", got, err)
	}
	gw.set(func() { gw.external = netip.Addr{} })
	if got, err := f.ExternalIP(t.Context()); !errors.Is(err, backends.ErrNetworkFailure) {
		t.Errorf("the gateway has no external address: %v, %v", got, err)
	}
}

func TestOpenPorts(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	port, err := f.OpenExternalPort(t.Context(), backends.UDP)
	if err != nil || port < 49152 || len(gw.live()) != 0 {
		t.Errorf("OpenExternalPort: %d, %v; remaining mappings: %v", port, err, gw.live())
	}
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		if port, err := forward.OpenLocalPort(p); err != nil || port == 0 {
			t.Errorf("OpenLocalPort(%v): %d, %v", p, port, err)
		}
	}
	for range 100 {
		if port := forward.RandomPort(); port < 49152 {
			t.Errorf("RandomPort: %d", port)
		}
	}
}

// TestForwardedTraffic checks that data from outside arrives while the mapping is active.
func TestForwardedTraffic(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if conn, err := ln.Accept(); err == nil {
			_, _ = io.WriteString(conn, "hello")
			_ = conn.Close()
		}
	}()
	m, err := f.Enable(t.Context(), forward.TCP(netip.MustParseAddrPort(ln.Addr().String()).Port()))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := gw.Dial(t.Context(), "tcp", m.External().String())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	_ = conn.Close()
	external := m.External().String()
	if err := f.Disable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := gw.Dial(t.Context(), "tcp", external); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after Disable: %v, want refused", err)
	}
}

// TestIdleGoroutines checks that an idle Forwarder with one NAT-PMP mapping and OnEvent
// needs five goroutines at most.
func TestIdleGoroutines(t *testing.T) {
	const maxGoroutines = 5
	mapped := make(chan struct{})
	_, f := gatewayAndForwarder(t, forward.Config{Protocols: []string{"natpmp"}, OnEvent: func(forward.Event) { close(mapped) }}, gatewaytest.Config{})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	<-mapped
	ownStacks := func() (stacks []string) {
		buf := make([]byte, 1<<20)
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "goforward/") && !strings.Contains(stack, "testing.tRunner") && !strings.Contains(stack, "gatewaytest") {
				stacks = append(stacks, stack)
			}
		}
		return stacks
	}
	for range 1000 { // the dispatcher and the operation end soon
		if len(ownStacks()) <= maxGoroutines {
			break
		}
		runtime.Gosched()
	}
	if stacks := ownStacks(); len(stacks) > maxGoroutines {
		t.Errorf("%d goroutines, want at most %d:\n%s", len(stacks), maxGoroutines, strings.Join(stacks, "\n\n"))
	} else {
		t.Logf("%d goroutines", len(stacks))
	}
}

// permissiveBackend is a backend without a table that grants every request.
type permissiveBackend struct{ name string }

func (g *permissiveBackend) String() string { return g.name }

func (g *permissiveBackend) Close() error { return nil }

func (g *permissiveBackend) Supports(r backends.Request) error { return r.Check() }

func (g *permissiveBackend) ExternalAddr(context.Context) (netip.Addr, error) {
	return externalAddr, nil
}

func (g *permissiveBackend) Unmap(context.Context, backends.Mapping) error { return nil }

func (g *permissiveBackend) Renew(ctx context.Context, _ backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return g.Map(ctx, r)
}

func (g *permissiveBackend) Map(_ context.Context, r backends.Request) (backends.Mapping, error) {
	return backends.Mapping{
		Backend: g.name, Gateway: simAddr, Protocol: r.Protocol, Internal: netip.AddrPortFrom(localAddr, r.Internal.Port()),
		External: netip.AddrPortFrom(externalAddr, r.External.Port()), Description: r.Description,
		Lifetime: r.Lifetime, Granted: time.Now(),
	}, nil
}

// heapInUse returns the bytes of the heap that are in use.
func heapInUse() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // the second run frees what finalizers and pools held
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// TestResourcesPerMapping checks that a mapping needs little memory and no goroutine of
// its own.
func TestResourcesPerMapping(t *testing.T) {
	const (
		n             = 10000
		maxBytes      = 1536
		maxGoroutines = 12
	)
	f, err := forward.New(&forward.Config{Backends: []backends.Backend{&permissiveBackend{"generous"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, goroutinesBefore := heapInUse(), runtime.NumGoroutine()
	for i := range uint16(n) {
		if _, err := f.Enable(t.Context(), forward.TCP(1024+i)); err != nil {
			t.Fatal(err)
		}
	}
	perMapping := (heapInUse() - before) / n
	t.Logf("%d bytes for each mapping", perMapping)
	if perMapping > maxBytes {
		t.Errorf("%d bytes for each mapping, want at most %d", perMapping, maxBytes)
	}
	if added := runtime.NumGoroutine() - goroutinesBefore; added > maxGoroutines {
		t.Errorf("%d more goroutines", added)
	}
	runtime.KeepAlive(f)
}
