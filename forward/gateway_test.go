package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// start starts a gateway, and a Forwarder that is told of it.
func start(t *testing.T, config forward.Config, router gatewaytest.Config) (*gatewaytest.Gateway, *forward.Forwarder) {
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

// startListening is start with a Forwarder that hears the gateway's announcements.
func startListening(t *testing.T) (*gatewaytest.Gateway, *forward.Forwarder) {
	t.Helper()
	gw := gatewaytest.New(t, gatewaytest.Config{})
	f, err := forward.New(&forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{Announce: gw.AnnounceAddr()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return gw, f
}

// Bytes from outside arrive while the mapping stands.
func TestGatewayBytes(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
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

func TestProbe(t *testing.T) {
	refuse := func(code natpmp.ResultCode) func(*gatewaytest.Gateway) {
		return func(gw *gatewaytest.Gateway) { gw.Inject(gatewaytest.Fault{Result: int(code)}) }
	}
	for name, test := range map[string]struct {
		router gatewaytest.Config
		spoil  func(*gatewaytest.Gateway)
		want   error
	}{
		"answers":        {gatewaytest.Config{}, nil, nil},
		"refuses":        {gatewaytest.Config{}, refuse(natpmp.NotAuthorized), nil}, // it speaks: the mapping will tell
		"has no WAN":     {gatewaytest.Config{}, refuse(natpmp.NetworkFailure), nil},
		"is silent":      {gatewaytest.Config{}, func(gw *gatewaytest.Gateway) { gw.Inject(gatewaytest.Fault{Drop: true}) }, backends.ErrNoReply},
		"refuses 5351":   {gatewaytest.Config{}, func(gw *gatewaytest.Gateway) { gw.Down() }, backends.ErrNoReply},
		"speaks PCP":     {gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnly: true}}}, nil, nil},
		"stutters PCP":   {gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnlyTruncated: true}}}, nil, nil},
		"knows no PCP":   {gatewaytest.Config{Protocols: []string{"natpmp", "upnp"}}, nil, nil},
		"loses a packet": {gatewaytest.Config{}, func(gw *gatewaytest.Gateway) { gw.Inject(gatewaytest.Fault{Drop: true, Times: 1}) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			wait := 5 * time.Second
			if test.want != nil {
				wait = 500 * time.Millisecond // nothing answers
			}
			gw, f := start(t, forward.Config{DiscoveryTimeout: wait}, test.router)
			if test.spoil != nil {
				test.spoil(gw)
			}
			_, err := f.Gateway(t.Context())
			if !errors.Is(err, test.want) {
				t.Errorf("Probe: %v, want %v", err, test.want)
			}
			if errors.Is(err, forward.ErrNoGateway) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Probe: %v, of a gateway that was named", err)
			}
			var e *forward.Error
			if (test.want != nil) != errors.As(err, &e) {
				t.Errorf("Probe: %T", err)
			}
		})
	}
}

// What was found is remembered, and forgotten when it falls silent.
func TestProbeRemembered(t *testing.T) {
	gw, f := start(t, forward.Config{RequestTimeout: 3 * time.Second}, gatewaytest.Config{})
	asked := func() int { return gw.Stats().Requests["natpmp external address"] }
	for range 3 {
		if _, err := f.Gateway(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked(); n != 1 {
		t.Errorf("%d probes, want 1", n)
	}
	gw.Down()
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("Enable: %v", err)
	}
	if err := gw.Up(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Errorf("Enable when it is back: %v", err)
	}
}

// A gateway that hands out another port than the wish is no failure.
func TestGatewayTaken(t *testing.T) {
	gw, f := start(t, forward.Config{}, gatewaytest.Config{})
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.9:9"),
		External: netip.AddrPortFrom(gw.External(), 8080),
	}); err != nil {
		t.Fatal(err)
	}
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil || m.External().Port() == 8080 {
		t.Errorf("Enable: %v, %v", m, err)
	}
	if _, err := f.Enable(t.Context(), forward.TCP(8081), forward.External(8080), forward.Exact()); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("Enable of exactly a taken port: %v", err)
	}
	if n := len(gw.Table()); n != 2 {
		t.Errorf("the gateway has %v", gw.Table())
	}
}

// An announced restart brings the mapping back without anybody's doing.
func TestGatewayRestart(t *testing.T) {
	gw, f := startListening(t)
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	gw.Advance(time.Hour)
	if _, err := f.ExternalIP(t.Context()); err != nil { // it has seen an epoch of an hour
		t.Fatal(err)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	mappedAgain(t, gw)
	if err := m.Wait(waiting(t)); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Wait: %v; the gateway has %v", err, gw.Table())
	}
}

// mappedAgain waits until a gateway that has restarted has a mapping. What was
// asked for at that very moment may be had without a change to be seen.
func mappedAgain(t *testing.T, gw *gatewaytest.Gateway) {
	t.Helper()
	for n := 1; len(gw.Table()) == 0; n++ {
		if _, err := gw.AwaitRequests(waiting(t), n, func(r gatewaytest.Request) bool { return r.Op == "map" }); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLocalIP(t *testing.T) {
	_, f := start(t, forward.Config{}, gatewaytest.Config{})
	if got, err := f.LocalIP(t.Context()); err != nil || got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("LocalIP: %v, %v", got, err)
	}
}

func TestRun(t *testing.T) {
	mapped := make(chan struct{})
	gw, f := start(t, forward.Config{OnEvent: func(forward.Event) { close(mapped) }}, gatewaytest.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, forward.TCP(8080)) }()
	<-mapped
	if len(gw.Table()) != 1 {
		t.Errorf("the gateway has %v", gw.Table())
	}
	cancel()
	if err := <-done; err != nil || len(gw.Table()) != 0 {
		t.Errorf("Run: %v; the gateway has %v", err, gw.Table())
	}
	if err := f.Run(t.Context(), forward.TCP(1), forward.UDP(1)); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Run of nonsense: %v", err)
	}
}

// The package-level calls work on one Forwarder.
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

// A pinhole through an IPv6 firewall: nothing is translated.
func TestIPv6(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	f, err := forward.New(&forward.Config{Gateway: gw.Addr6(), Test: forward.TestNetwork{Announce: netip.MustParseAddrPort("[::1]:0")}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.TCP(8080), forward.IPv6())
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParseAddrPort("[::1]:8080"); m.External().AddrPort != want || m.Internal() != want || m.Backend() != "pcp" {
		t.Errorf("%v → %v by %s, want %v on both sides", m.External(), m.Internal(), m.Backend(), want)
	}
	if err := m.Close(); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Close: %v, the gateway has %v", err, gw.Table())
	}
	if _, err := f.Enable(t.Context(), forward.IPv6(), forward.To(netip.MustParseAddrPort("192.0.2.1:80"))); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("IPv6 to an IPv4 address: %v", err)
	}
}

// What NAT-PMP cannot express goes to PCP, though NAT-PMP is preferred.
func TestByCapability(t *testing.T) {
	for name, opts := range map[string][]forward.Option{
		"one peer only":    {forward.TCP(8080), forward.From(netip.MustParseAddrPort("45.45.45.7:0"))},
		"another protocol": {forward.Protocol(backends.SCTP, 8080)},
		"for ever":         {forward.TCP(8080), forward.Lifetime(forward.Forever)},
		"one address":      {forward.TCP(8080), forward.ExternalAddr(netip.MustParseAddr("45.45.45.1")), forward.Exact()},
	} {
		_, f := start(t, forward.Config{}, gatewaytest.Config{})
		plain, err := f.Enable(t.Context(), forward.TCP(9090))
		if err != nil || plain.Backend() != "natpmp" {
			t.Fatalf("Enable: %v by %s", err, plain.Backend())
		}
		m, err := f.Enable(t.Context(), opts...)
		if err != nil || m.Backend() != "pcp" {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

// The gateway of a VPN provider has one port for each client, the same outside
// and inside and for both protocols, and another after each reconnect.
func TestVPN(t *testing.T) {
	events := make(chan string, 16)
	gw, f := start(t, forward.Config{OnEvent: func(e forward.Event) {
		events <- fmt.Sprint(e.Kind, e.Grants[0].External.Port())
	}, Lifetime: time.Minute}, gatewaytest.Config{
		ManualClock: true, Protocols: []string{"natpmp"}, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VPN: true}},
	})
	m, err := f.Enable(t.Context(), forward.Both(8080), forward.SamePort())
	if err != nil {
		t.Fatal(err)
	}
	wantSlot := func() uint16 {
		t.Helper()
		port := m.External().Port()
		for _, g := range m.Grants() {
			if g.External.Port() != port || g.Internal.Port() != port || g.Lifetime != time.Minute {
				t.Errorf("%+v, want one number everywhere, for a minute", g)
			}
		}
		if m.Internal().Port() != port || len(m.Grants()) != 2 {
			t.Errorf("%v, internal %v", m.Grants(), m.Internal())
		}
		return port
	}
	first := wantSlot()
	for range 3 {
		gw.Advance(30 * time.Second)
		if err := f.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if again := wantSlot(); again != first {
			t.Fatalf("port %d, was %d", again, first)
		}
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true, KeepEpoch: true})
	if err := f.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := wantSlot()
	if second == first {
		t.Errorf("still port %d: this gateway hands out another after a reconnect", first)
	}
	for _, r := range gw.Requests() {
		if r.Op == "unmap" {
			t.Errorf("a slot was deleted: %x", r.Raw)
		}
	}
	if err := f.Disable(t.Context()); err != nil {
		t.Error(err)
	}
	for _, want := range []string{fmt.Sprint(forward.EventMapped, first), fmt.Sprint(forward.EventChanged, second)} {
		if got := <-events; got != want {
			t.Errorf("event %s, want %s", got, want)
		}
	}
	if len(events) > 0 {
		t.Errorf("one event more: %s", <-events)
	}

	// Who listens on a port of its own choice gets nothing there, and is told.
	if m, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, backends.ErrUnsupported) || !strings.Contains(err.Error(), "SamePort") {
		t.Errorf("Enable without SamePort: %v, %v; want ErrUnsupported", m, err)
	}
}
