package forward_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestEnable checks what a new mapping reports, and what the gateway has.
func TestEnable(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.UDP(8080))
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.AddrPortFrom(externalAddr, 8080); m.External().AddrPort != want {
		t.Errorf("External %v, want %v", m.External(), want)
	}
	if want := netip.AddrPortFrom(localAddr, 8080); m.Internal() != want {
		t.Errorf("Internal %v, want %v", m.Internal(), want)
	}
	if m.Backend() != "memory" || m.Scope() != backends.ScopePublic || m.Err() != nil || !m.Gateway().IsValid() {
		t.Errorf("backend %q, scope %v, err %v, gateway %v", m.Backend(), m.Scope(), m.Err(), m.Gateway())
	}
	if remaining := time.Until(m.Expires()); remaining < time.Hour || remaining > 2*time.Hour {
		t.Errorf("expires in %v, want the default of two hours", remaining)
	}
	if g := gw.live(); len(g) != 1 || g[0].Protocol != backends.UDP || g[0].Description != "goforward" {
		t.Errorf("the gateway has %+v", g)
	}
}

// TestEnableDefaults checks Enable without options: TCP, a local port that is free, and
// the same external port, since some gateways refuse to choose one.
func TestEnableDefaults(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	m, err := f.Enable(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.Internal().Port() == 0 || m.External().Port() != m.Internal().Port() {
		t.Errorf("%v → %v, want the same port", m.External(), m.Internal())
	}
	if g := gw.live(); len(g) != 1 || g[0].Protocol != backends.TCP {
		t.Errorf("the gateway has %+v, want TCP", g)
	}
}

func TestEnableInvalid(t *testing.T) {
	peer := netip.MustParseAddrPort("198.51.100.1:0")
	for name, test := range map[string]struct {
		opts []forward.Option
		want error
	}{
		"two protocols":          {[]forward.Option{forward.TCP(1), forward.UDP(1)}, backends.ErrInvalid},
		"one protocol twice":     {[]forward.Option{forward.TCP(1), forward.TCP(1)}, backends.ErrInvalid},
		"protocol 0":             {[]forward.Option{forward.Protocol(0, 80)}, backends.ErrInvalid},
		"external port 0":        {[]forward.Option{forward.TCP(80), forward.External(0)}, backends.ErrInvalid},
		"negative lifetime":      {[]forward.Option{forward.TCP(80), forward.Lifetime(-1)}, backends.ErrInvalid},
		"once in the background": {[]forward.Option{forward.TCP(80), forward.Once(), forward.Background()}, backends.ErrInvalid},
		"exact without a port":   {[]forward.Option{forward.Exact()}, backends.ErrInvalid},
		"no address":             {[]forward.Option{forward.TCP(80), forward.To(netip.AddrPort{})}, backends.ErrInvalid},
		"no port at an address":  {[]forward.Option{forward.To(peer)}, backends.ErrInvalid},
		"no peer":                {[]forward.Option{forward.TCP(80), forward.From(netip.AddrPort{})}, backends.ErrInvalid},
		"same port, two ports":   {[]forward.Option{forward.TCP(80), forward.External(81), forward.SamePort()}, backends.ErrInvalid},
		"nil":                    {[]forward.Option{nil}, backends.ErrInvalid},
		"a peer, unsupported":    {[]forward.Option{forward.TCP(80), forward.From(peer)}, backends.ErrUnsupported},
		"no free port of SCTP":   {[]forward.Option{forward.Protocol(backends.SCTP, 0)}, backends.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			gw := newFakeGateway()
			f := newForwarder(t, forward.Config{}, gw)
			defer f.Close()
			if m, err := f.Enable(t.Context(), test.opts...); !errors.Is(err, test.want) || m != nil {
				t.Errorf("Enable: %v, %v; want %v", m, err, test.want)
			}
			if calls := gw.takeCalls(); len(calls) > 0 {
				t.Errorf("requests %q, want none", calls)
			}
		})
	}
}

// TestDeadlines checks that the deadline of the caller is reported as such, and
// RequestTimeout as no reply.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw := newFakeGateway()
		gw.block = true
		f := newForwarder(t, forward.Config{RequestTimeout: 5 * time.Second}, gw)
		defer f.Close()
		start := time.Now()
		_, err := f.Enable(t.Context(), forward.TCP(8080))
		if !errors.Is(err, backends.ErrNoReply) || errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("RequestTimeout: %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		start = time.Now()
		_, err = f.Enable(ctx, forward.TCP(8080))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 20*time.Second {
			t.Errorf("deadline of the caller: %v after %v", err, time.Since(start))
		}
	})
}

// TestPortRetry checks which refusals cause attempts with other external ports, and how
// many.
func TestPortRetry(t *testing.T) {
	for name, test := range map[string]struct {
		fail     func(string, backends.Protocol, uint16) error
		opts     []forward.Option
		want     error
		requests int
	}{
		"taken":                     {failMapAt(backends.ErrConflict, 8080), []forward.Option{forward.TCP(8080)}, nil, 2},
		"always taken":              {failMap(backends.ErrConflict), []forward.Option{forward.TCP(8080)}, backends.ErrConflict, 9},
		"taken, exact":              {failMapAt(backends.ErrConflict, 8080), []forward.Option{forward.TCP(8080), forward.Exact()}, backends.ErrConflict, 1},
		"low port refused":          {failMapAt(backends.ErrNotAuthorized, 80), []forward.Option{forward.TCP(80)}, nil, 2},
		"low external port refused": {failMapAt(backends.ErrNotAuthorized, 80), []forward.Option{forward.TCP(8080), forward.External(80)}, nil, 2},
		"refused":                   {failMap(backends.ErrNotAuthorized), []forward.Option{forward.TCP(80)}, backends.ErrNotAuthorized, 2},
		"high port refused":         {failMap(backends.ErrNotAuthorized), []forward.Option{forward.TCP(8080)}, backends.ErrNotAuthorized, 1},
		"no WAN":                    {failMap(backends.ErrNetworkFailure), []forward.Option{forward.TCP(8080)}, backends.ErrNetworkFailure, 1},
		"full":                      {failMap(backends.ErrNoResources), []forward.Option{forward.TCP(8080)}, backends.ErrNoResources, 1},
		"private WAN":               {failMap(backends.ErrPrivateWAN), []forward.Option{forward.TCP(8080)}, backends.ErrPrivateWAN, 1},
	} {
		t.Run(name, func(t *testing.T) {
			gw := newFakeGateway()
			gw.fail = test.fail
			f := newForwarder(t, forward.Config{}, gw)
			defer f.Close()
			m, err := f.Enable(t.Context(), test.opts...)
			if !errors.Is(err, test.want) {
				t.Errorf("Enable: %v, %v; want %v", m, err, test.want)
			}
			calls := gw.takeCalls()
			if len(calls) != test.requests {
				t.Errorf("requests %q, want %d", calls, test.requests)
			}
			if err == nil && m.External().Port() < 49152 {
				t.Errorf("port %d, want a port from 49152", m.External().Port())
			}
		})
	}
}

// TestExternalPortTaken checks that a gateway may grant another port than the suggested
// one, unless Exact is given.
func TestExternalPortTaken(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
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

func TestBoth(t *testing.T) {
	gw := newFakeGateway()
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	gw.taken[8080] = true
	m, err := f.Enable(t.Context(), forward.Both(8080))
	if err != nil {
		t.Fatal(err)
	}
	state := m.Grants()
	if len(state) != 2 || state[0].External != state[1].External || state[0].External.Port() != 8081 {
		t.Fatalf("granted %+v, want TCP and UDP on 8081", state)
	}
	if diff := cmp.Diff([]string{"map tcp 8080", "map udp 8081"}, gw.takeCalls()); diff != "" {
		t.Error(diff)
	}
	if err := m.Close(); err != nil || len(gw.live()) != 0 {
		t.Errorf("Close: %v; the gateway has %v", err, gw.live())
	}
}

// TestBothPortMismatch checks that TCP and UDP on different external ports are a failure.
// There are four attempts at most, and no mapping remains.
func TestBothPortMismatch(t *testing.T) {
	gw := newFakeGateway()
	gw.udpPort = 7000
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.Both(8080)) // the second attempt suggests the port that UDP got
	if err != nil || m.External().Port() != 7000 {
		t.Fatalf("Enable: %v, %v; want port 7000 for both", m, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	gw.taken[7000] = true // not available for TCP
	gw.takeCalls()
	if m, err = f.Enable(t.Context(), forward.Both(8080)); !errors.Is(err, backends.ErrConflict) {
		t.Errorf("Enable: %v, %v; want ErrConflict", m, err)
	}
	attempts := slices.DeleteFunc(gw.takeCalls(), func(call string) bool { return !strings.HasPrefix(call, "map tcp") })
	if len(attempts) != 4 {
		t.Errorf("attempts %q, want 4", attempts)
	}
	if remaining := gw.live(); len(remaining) != 0 {
		t.Errorf("remaining mappings: %v", remaining)
	}
	gw.set(func() { gw.udpPort, gw.fail = 0, failMapAt(backends.ErrNotAuthorized, 8080) })
	gw.fail = func(op string, p backends.Protocol, _ uint16) error {
		if op == "map" && p == backends.UDP {
			return backends.ErrNotAuthorized
		}
		return nil
	}
	if _, err = f.Enable(t.Context(), forward.Both(8080)); !errors.Is(err, backends.ErrNotAuthorized) || len(gw.live()) != 0 {
		t.Errorf("with UDP refused: %v, remaining mappings: %v", err, gw.live())
	}
}

// TestSamePort checks that the external port becomes the internal port too.
func TestSamePort(t *testing.T) {
	gw := newFakeGateway()
	gw.taken[8080] = true
	f := newForwarder(t, forward.Config{}, gw)
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.Both(8080), forward.SamePort())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range m.Grants() {
		if g.External.Port() != 8081 || g.Internal.Port() != 8081 {
			t.Errorf("%v → %v, want 8081 on both sides", g.External, g.Internal)
		}
	}
	if n := len(gw.live()); n != 2 {
		t.Errorf("the gateway has %v", gw.live())
	}
}

// TestVPNGateway checks a VPN provider's gateway. Each client has one port there, with the
// same number outside and inside and for both protocols. The port changes with each
// reconnect.
func TestVPNGateway(t *testing.T) {
	events := make(chan string, 16)
	gw, f := gatewayAndForwarder(t, forward.Config{OnEvent: func(e forward.Event) {
		events <- fmt.Sprint(e.Kind, e.Grants[0].External.Port())
	}, Lifetime: time.Minute}, gatewaytest.Config{
		ManualClock: true, Protocols: []string{"natpmp"}, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VPN: true}},
	})
	m, err := f.Enable(t.Context(), forward.Both(8080), forward.SamePort())
	if err != nil {
		t.Fatal(err)
	}
	wantSamePort := func() uint16 {
		t.Helper()
		port := m.External().Port()
		for _, g := range m.Grants() {
			if g.External.Port() != port || g.Internal.Port() != port || g.Lifetime != time.Minute {
				t.Errorf("%+v, want one port everywhere, for one minute", g)
			}
		}
		if m.Internal().Port() != port || len(m.Grants()) != 2 {
			t.Errorf("%v, internal %v", m.Grants(), m.Internal())
		}
		return port
	}
	first := wantSamePort()
	for range 3 {
		gw.Advance(30 * time.Second)
		if err := f.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if port := wantSamePort(); port != first {
			t.Fatalf("port %d, want %d as before", port, first)
		}
	}
	gw.Restart(gatewaytest.RestartOptions{Silent: true, KeepEpoch: true})
	if err := f.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := wantSamePort()
	if second == first {
		t.Errorf("still port %d, want another one after a reconnect", first)
	}
	for _, r := range gw.Requests() {
		if r.Op == "unmap" {
			t.Errorf("the mapping was deleted: %x", r.Raw)
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
		t.Errorf("unexpected event: %s", <-events)
	}

	// Without SamePort, the granted port would not be the port of the listener.
	if m, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, backends.ErrUnsupported) || !strings.Contains(err.Error(), "SamePort") {
		t.Errorf("Enable without SamePort: %v, %v; want ErrUnsupported", m, err)
	}
}

// TestPinhole checks a pinhole in an IPv6 firewall: no address or port is translated.
func TestPinhole(t *testing.T) {
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
		t.Errorf("IPv6 and an IPv4 address: %v", err)
	}
}

// TestPinholeOverIPv4 checks that pinholes are opened through a UPnP device that is reached
// over IPv4, at a URL or at the IPv4 address of the same gateway.
func TestPinholeOverIPv4(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{
		Listen6: netip.MustParseAddrPort("[::1]:0"), Quirks: quirks.Quirks{UPnP: quirks.UPnP{Search: quirks.Search{IPv4Only: true}}},
	})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	for name, config := range map[string]forward.Config{
		"a URL":                {Gateway: gw.Addr6(), UPnPURL: gw.UPnP().DescriptionURL()},
		"a URL, and a source":  {UPnPURL: gw.UPnP().DescriptionURL(), Source: netip.IPv6Loopback(), Gateways: bothGateways(gw)},
		"the gateway, by IPv4": {Gateways: bothGateways(gw), Test: forward.TestNetwork{SSDP: gw.SSDP()}},
	} {
		var warnings strings.Builder // a warning names a device that is not known to be the gateway's
		config.Protocols, config.Logger = []string{"upnp"}, slog.New(slog.NewTextHandler(&warnings, &slog.HandlerOptions{Level: slog.LevelWarn}))
		f, err := forward.New(&config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.IPv6())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := netip.MustParseAddrPort("[::1]:8080")
		if m.External().AddrPort != want || m.Internal() != want || m.Gateway().Addr() != gw.Addr().Addr() || len(gw.Table()) != 1 {
			t.Errorf("%s: %v → %v by %v, want %v on both sides by %v; the gateway has %v", name, m.External(), m.Internal(), m.Gateway(), want, gw.Addr(), gw.Table())
		}
		if err := m.Close(); err != nil || len(gw.Table()) != 0 {
			t.Errorf("%s: Close: %v, the gateway has %v", name, err, gw.Table())
		}
		if _ = f.Close(); warnings.Len() != 0 {
			t.Errorf("%s: %v", name, warnings.String())
		}
	}
}

// TestUnconfirmedPinhole checks that a pinhole is closed if the response to its request was
// lost, also if the request named another external port.
func TestUnconfirmedPinhole(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Protocols: []string{"upnp"}, Listen6: netip.MustParseAddrPort("[::1]:0")})
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer gw.Close()
	f, err := forward.New(&forward.Config{Gateway: gw.Addr6(), Protocols: []string{"upnp"}, UPnPURL: gw.UPnP().DescriptionURL6()})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	remove := gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Op == "map" }, DropReply: true})
	_, err = f.Enable(t.Context(), forward.TCP(8080), forward.External(9000), forward.IPv6())
	if remove(); !errors.Is(err, backends.ErrNoReply) || len(gw.Table()) != 1 {
		t.Fatalf("Enable: %v, the gateway has %v", err, gw.Table())
	}
	if err := f.Close(); err != nil || len(gw.Table()) != 0 {
		t.Errorf("Close: %v, the gateway has %v", err, gw.Table())
	}
}

// bothGateways returns a hook that reports the addresses of a gateway.
func bothGateways(gw *gatewaytest.Gateway) func(context.Context) ([]discover.Gateway, error) {
	return func(context.Context) ([]discover.Gateway, error) {
		return []discover.Gateway{{Addr: gw.Addr().Addr()}, {Addr: gw.Addr6().Addr()}}, nil
	}
}

// TestToOwnAddress checks that two mappings of one port are one, even if one of them
// names an address of this host. Closing one keeps the other.
func TestToOwnAddress(t *testing.T) {
	gw, f := gatewayAndForwarder(t, forward.Config{}, gatewaytest.Config{})
	if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
		t.Fatal(err)
	}
	byAddress, err := f.Enable(t.Context(), forward.To(netip.MustParseAddrPort("127.0.0.1:8080")))
	if err != nil {
		t.Fatal(err)
	}
	if err := byAddress.Close(); err != nil || len(gw.Table()) != 1 {
		t.Errorf("Close: %v, the gateway has %v", err, gw.Table())
	}
}

// TestBackground checks that a mapping in the background is retried until it is granted.
func TestBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, events := newFakeGateway(), &eventRecorder{}
		gw.fail = failMap(backends.ErrNoReply)
		f := newForwarder(t, forward.Config{OnEvent: events.record}, gw)
		defer f.Close()
		m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if m.External().IsValid() || m.Err() == nil {
			t.Errorf("%v, error %v", m, m.Err())
		}
		if n := len(gw.takeCalls()); n < 50 || n > 80 {
			t.Errorf("%d requests in the first hour, want 50 to 80", n)
		}
		gw.set(func() { gw.fail = nil })
		if err := m.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		events.want(t, "failed 0", "mapped 8080")
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if err := m.Wait(t.Context()); !errors.Is(err, forward.ErrClosed) {
			t.Errorf("Wait after Close: %v", err)
		}
		if err := m.Refresh(t.Context()); !errors.Is(err, forward.ErrClosed) {
			t.Errorf("Refresh after Close: %v", err)
		}
	})
}

// TestRun checks that Run keeps a mapping until its context ends.
func TestRun(t *testing.T) {
	mapped := make(chan struct{})
	gw, f := gatewayAndForwarder(t, forward.Config{OnEvent: func(forward.Event) { close(mapped) }}, gatewaytest.Config{})
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
		t.Errorf("Run with invalid options: %v", err)
	}
}

// TestRunMappingClosed checks that Run returns when its mapping is closed, although its
// context has not ended.
func TestRunMappingClosed(t *testing.T) {
	for name, disable := range map[string]func(context.Context, *forward.Forwarder) error{
		"Disable": func(ctx context.Context, f *forward.Forwarder) error { return f.Disable(ctx) },
		"Disable with a selector": func(ctx context.Context, f *forward.Forwarder) error {
			return f.Disable(ctx, forward.TCP(8080))
		},
		"DisableAll": func(ctx context.Context, f *forward.Forwarder) error {
			_, err := f.DisableAll(ctx)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gw := newFakeGateway()
				f := newForwarder(t, forward.Config{}, gw)
				defer f.Close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				returned := make(chan error, 1)
				go func() { returned <- f.Run(ctx, forward.TCP(8080)) }()
				synctest.Wait()
				if len(gw.live()) != 1 {
					t.Fatalf("the gateway has %v, want the mapping of Run", gw.live())
				}
				if err := disable(t.Context(), f); err != nil || len(gw.live()) != 0 {
					t.Fatalf("%s: %v, the gateway has %v", name, err, gw.live())
				}
				time.Sleep(time.Minute)
				select {
				case <-returned:
				default:
					t.Errorf("Run still blocks a minute after %s removed its mapping, want it to return", name)
					cancel()
					<-returned
				}
			})
		})
	}
}

// TestSlowDevice checks a UPnP device that needs longer for a mapping than each of the
// other backends is given, while these do not reply.
func TestSlowDevice(t *testing.T) {
	t.Parallel()
	gw, f := gatewayWithUPnP(t, forward.Config{}, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{
		Actions: quirks.Actions{Delay: map[string]time.Duration{"AddPortMapping": 4500 * time.Millisecond}},
	}}})
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Service == "natpmp" || r.Service == "pcp" }, Drop: true})
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil || m.External().Port() != 8080 {
		t.Fatalf("Enable: %v, %v", m, err)
	}
}
