package forward_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestProbe checks which replies of a gateway mean that it is available.
func TestProbe(t *testing.T) {
	refuse := func(code natpmp.ResultCode) func(*gatewaytest.Gateway) {
		return func(gw *gatewaytest.Gateway) { gw.Inject(gatewaytest.Fault{Result: int(code)}) }
	}
	for name, test := range map[string]struct {
		router gatewaytest.Config
		inject func(*gatewaytest.Gateway)
		want   error
	}{
		"replies":                     {gatewaytest.Config{}, nil, nil},
		"refuses":                     {gatewaytest.Config{}, refuse(natpmp.NotAuthorized), nil}, // it supports NAT-PMP
		"has no WAN":                  {gatewaytest.Config{}, refuse(natpmp.NetworkFailure), nil},
		"no reply":                    {gatewaytest.Config{}, func(gw *gatewaytest.Gateway) { gw.Inject(gatewaytest.Fault{Drop: true}) }, backends.ErrNoReply},
		"port 5351 closed":            {gatewaytest.Config{}, func(gw *gatewaytest.Gateway) { gw.Down() }, backends.ErrNoReply},
		"PCP only":                    {gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnly: true}}}, nil, nil},
		"PCP only, truncated replies": {gatewaytest.Config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnlyTruncated: true}}}, nil, nil},
		"no PCP":                      {gatewaytest.Config{Protocols: []string{"natpmp", "upnp"}}, nil, nil},
		"one packet lost":             {gatewaytest.Config{}, func(gw *gatewaytest.Gateway) { gw.Inject(gatewaytest.Fault{Drop: true, Times: 1}) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			wait := 5 * time.Second
			if test.want != nil {
				wait = 500 * time.Millisecond // no reply arrives
			}
			gw, f := gatewayAndForwarder(t, forward.Config{DiscoveryTimeout: wait}, test.router)
			if test.inject != nil {
				test.inject(gw)
			}
			_, err := f.Gateway(t.Context())
			if !errors.Is(err, test.want) {
				t.Errorf("Gateway: %v, want %v", err, test.want)
			}
			if errors.Is(err, forward.ErrNoGateway) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Gateway: %v, but the Config names the gateway", err)
			}
			var e *forward.Error
			if (test.want != nil) != errors.As(err, &e) {
				t.Errorf("Gateway: error of type %T", err)
			}
		})
	}
}

// TestProbeCached checks that a discovered protocol is remembered, and probed again after
// the gateway stops replying.
func TestProbeCached(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{RequestTimeout: 3 * time.Second}, gatewaytest.Config{})
	probes := func() int { return gw.Stats().Requests["natpmp external address"] }
	for range 3 {
		if _, err := f.Gateway(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := probes(); n != 1 {
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
		t.Errorf("Enable after the gateway is back: %v", err)
	}
}

// TestProbeShared checks that concurrent callers share a probe, even if it fails.
func TestProbeShared(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{})
	gw.Inject(gatewaytest.Fault{Drop: true})
	f := newLoopbackForwarder(t, forward.Config{Protocols: []string{"natpmp"}, Gateway: gw.Addr(), DiscoveryTimeout: 500 * time.Millisecond, RequestTimeout: 20 * time.Second})
	for i := range uint16(8) {
		if _, err := f.Enable(t.Context(), forward.TCP(9000+i), forward.Background()); err != nil {
			t.Fatal(err)
		}
	}
	<-time.After(100 * time.Millisecond)
	start := time.Now()
	_, err := f.Gateway(t.Context())
	t.Logf("Gateway with 8 mappings in the background: %v", time.Since(start))
	if time.Since(start) > 4*time.Second { // nine sequential probes would take 4.5 s
		t.Errorf("Gateway took %v with a DiscoveryTimeout of 500ms: %v", time.Since(start), err)
	}
}

// TestFallBackToNextBackend checks that the next backend is used if one cannot express a
// request or refuses it.
func TestFallBackToNextBackend(t *testing.T) {
	for name, fail := range map[string]error{
		"refused": backends.ErrNotAuthorized, "no reply": backends.ErrNoReply, "malformed reply": backends.ErrMalformed,
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newFakeGateway(), newFakeGateway()
			first.name, first.fail = "first", failMap(fail)
			second.name = "second"
			f := newForwarder(t, forward.Config{}, first, second)
			defer f.Close()
			m, err := f.Enable(t.Context(), forward.TCP(8080))
			if err != nil || m.Backend() != "second" {
				t.Errorf("Enable: %v by %q, %v", m, m.Backend(), err)
			}
		})
	}
}

// TestTimeShareWithoutReply checks that a backend without a reply leaves time for the
// next one, and that the last backend gets all of the remaining time. The error must not
// report "no reply" for a backend that was not used.
func TestTimeShareWithoutReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newFakeGateway(), newFakeGateway()
		first.name, first.block, second.name = "first", true, "second"
		f := newForwarder(t, forward.Config{}, first, second)
		defer f.Close()
		start := time.Now()
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil || m.Backend() != "second" || time.Since(start) != 4*time.Second {
			t.Errorf("Enable: %v, %v after %v", m, err, time.Since(start))
		}
		second.set(func() { second.block = true })
		start = time.Now()
		if _, err := f.Enable(t.Context(), forward.TCP(9090)); !errors.Is(err, backends.ErrNoReply) || time.Since(start) != 15*time.Second {
			t.Errorf("Enable: %v after %v", err, time.Since(start))
		}
	})
}

// TestBackendByCapability checks that PCP is used for requests that NAT-PMP cannot
// express, although NAT-PMP is preferred.
func TestBackendByCapability(t *testing.T) {
	for name, opts := range map[string][]forward.Option{
		"one peer only":    {forward.TCP(8080), forward.From(netip.MustParseAddrPort("45.45.45.7:0"))},
		"another protocol": {forward.Protocol(backends.SCTP, 8080)},
		"forever":          {forward.TCP(8080), forward.Lifetime(forward.Forever)},
		"one address":      {forward.TCP(8080), forward.ExternalAddr(netip.MustParseAddr("45.45.45.1")), forward.Exact()},
	} {
		_, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
		ordinary, err := f.Enable(t.Context(), forward.TCP(9090))
		if err != nil || ordinary.Backend() != "natpmp" {
			t.Fatalf("Enable: %v by %s", err, ordinary.Backend())
		}
		m, err := f.Enable(t.Context(), opts...)
		if err != nil || m.Backend() != "pcp" {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

// TestUPnPByCapability checks that UPnP is used for requests that the preferred protocol
// cannot express.
func TestUPnPByCapability(t *testing.T) {
	for name, c := range map[string]struct {
		opts []forward.Option
		want gatewaytest.Entry
	}{
		"to another host": {
			[]forward.Option{forward.TCP(80), forward.To(netip.MustParseAddrPort("192.168.77.9:80"))},
			gatewaytest.Entry{Internal: netip.MustParseAddrPort("192.168.77.9:80"), Remaining: 2 * 60 * 60 * 1e9},
		},
		"forever": {
			[]forward.Option{forward.TCP(80), forward.Lifetime(forward.Forever)},
			gatewaytest.Entry{Internal: netip.MustParseAddrPort("127.0.0.1:80"), Remaining: backends.Forever},
		},
	} {
		t.Run(name, func(t *testing.T) {
			gw, f := gatewayWithUPnP(t, forward.Config{}, gatewaytest.Config{
				ManualClock: true, Protocols: []string{"natpmp", "upnp"}, Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true, Version: 1}},
			})
			m, err := f.Enable(t.Context(), c.opts...)
			if err != nil {
				t.Fatal(err)
			}
			table := gw.Table()
			if m.Backend() != "upnp" || len(table) != 1 || table[0].Internal != c.want.Internal || table[0].Remaining != c.want.Remaining {
				t.Errorf("granted by %s: %+v, want %+v", m.Backend(), table, c.want)
			}
			if forever := c.want.Remaining == backends.Forever; m.Expires().IsZero() != forever {
				t.Errorf("expires %v", m.Expires())
			}
			if err := f.Disable(t.Context()); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Disable: %v, remaining mappings: %v", err, gw.Table())
			}
		})
	}
}

// TestBackendSelection checks that NAT-PMP is preferred if it is available, then PCP,
// then UPnP.
func TestBackendSelection(t *testing.T) {
	for want, router := range map[string]gatewaytest.Config{
		"natpmp": {},
		"pcp":    {Protocols: []string{"pcp", "upnp"}},
		"upnp":   {Protocols: []string{"upnp"}},
	} {
		t.Run(want, func(t *testing.T) {
			gw, f := gatewayWithUPnP(t, forward.Config{}, router)
			m, err := f.Enable(t.Context(), forward.TCP(8080))
			if err != nil {
				t.Fatal(err)
			}
			if m.Backend() != want {
				t.Errorf("granted by %s, want %s", m.Backend(), want)
			}
			if addr, err := f.ExternalIP(t.Context()); err != nil || addr != gw.External() {
				t.Errorf("ExternalIP: %v, %v", addr, err)
			}
		})
	}
}

// TestUPnPDeviceDisconnected checks that a device whose connection is down is used after
// a wait if there is no better device.
func TestUPnPDeviceDisconnected(t *testing.T) {
	gw, f := gatewayWithUPnP(t, forward.Config{}, gatewaytest.Config{
		Protocols: []string{"upnp"},
		Quirks:    quirks.Quirks{UPnP: quirks.UPnP{Status: quirks.Status{Connection: "Disconnected"}}},
	})
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if m.Backend() != "upnp" || len(gw.Table()) != 1 {
		t.Errorf("granted by %s: %v", m.Backend(), gw.Table())
	}
}
