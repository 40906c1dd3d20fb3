package natpmp_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backendtest"
	"github.com/natforward/goforward/gatewaytest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a gateway, which is closed at the end of the test.
func start(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// dropRequests makes the gateway ignore every request.
func dropRequests(gw *gatewaytest.Gateway) { gw.Inject(gatewaytest.Fault{Drop: true}) }

func TestContract(t *testing.T) {
	t.Parallel() // it waits for timeouts
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		gw := start(t, gatewaytest.Config{})
		b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr(), Transmissions: 2, FirstWait: 500 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return backendtest.OnGateway(gw, b, int(natpmp.NotAuthorized))
	})
}

// TestAnotherHost checks that a mapping to another host is refused before anything
// is sent: the gateway would map to this host.
func TestAnotherHost(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("192.0.2.9:8080")}
	if _, err := b.Map(t.Context(), r); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("Map: %v, want ErrUnsupported", err)
	}
	if n := len(gw.Requests()); n != 0 {
		t.Errorf("%d requests reached the gateway", n)
	}
	r.Internal = netip.MustParseAddrPort("127.0.0.1:8080")
	if _, err := b.Map(t.Context(), r); err != nil {
		t.Errorf("Map to the local address: %v", err)
	}
}

// TestExternalAddrAge checks that Map and Renew may use an external address that
// was reported shortly before, but do not use an old address indefinitely.
func TestExternalAddrAge(t *testing.T) {
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080"), Lifetime: time.Hour}
	for name, repeat := range map[string]func(context.Context, *natpmp.Backend, backends.Mapping) (backends.Mapping, error){
		"mapped": func(ctx context.Context, b *natpmp.Backend, _ backends.Mapping) (backends.Mapping, error) {
			return b.Map(ctx, r)
		},
		"renewed": func(ctx context.Context, b *natpmp.Backend, m backends.Mapping) (backends.Mapping, error) {
			return b.Renew(ctx, m, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{})
			gw.Inject(gatewaytest.Fault{ // limits the number of requests
				Match: func(r gatewaytest.Request) bool { return r.Op == "map" }, Delay: 20 * time.Millisecond,
			})
			b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			b.SetExternalAge(time.Second)
			m, err := b.Map(t.Context(), r)
			if err != nil || m.External.Addr() != gw.External() {
				t.Fatalf("mapped at %v, %v; want %v", m.External, err, gw.External())
			}
			newAddr := netip.MustParseAddr("45.45.45.99")
			gw.SetExternal(newAddr)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for m.External.Addr() != newAddr {
				if ctx.Err() != nil {
					t.Fatalf("%s repeatedly: still at %v, and the gateway is at %v", name, m.External.Addr(), newAddr)
				}
				if m, err = repeat(t.Context(), b, m); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestRenewWithoutAddress checks that Renew requests the mapping first, and
// succeeds even if the gateway does not report its address.
func TestRenewWithoutAddress(t *testing.T) {
	first, second, third := netip.MustParseAddr("45.45.45.1"), netip.MustParseAddr("45.45.45.2"), netip.MustParseAddr("45.45.45.3")
	for name, test := range map[string]struct {
		fault     gatewaytest.Fault
		restarted bool // renew with a new backend, which has no recorded address
		want      netip.Addr
	}{
		"reply":               {gatewaytest.Fault{}, false, third},
		"no reply":            {gatewaytest.Fault{Drop: true}, false, second},
		"no reply, restarted": {gatewaytest.Fault{Drop: true}, true, first},
		"refused":             {gatewaytest.Fault{Result: int(natpmp.NetworkFailure)}, false, netip.Addr{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, err := gatewaytest.Start(gatewaytest.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = gw.Close() }()
			newBackend := func() *natpmp.Backend {
				b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr(), Transmissions: 2, FirstWait: 500 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = b.Close() })
				return b
			}
			b := newBackend()
			m, err := b.Map(t.Context(), backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080")})
			if err != nil || m.External.Addr() != first {
				t.Fatalf("%v, %v", m.External, err)
			}
			gw.SetExternal(second)
			if _, err := b.ExternalAddr(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.ExpireExternal()
			if test.restarted {
				b = newBackend()
			}
			gw.SetExternal(third)
			gw.ResetStats()
			test.fault.Match = func(r gatewaytest.Request) bool { return r.Op == "external address" }
			gw.Inject(test.fault)
			renewed, err := b.Renew(t.Context(), m, backends.Request{Lifetime: time.Hour})
			if err != nil || renewed.External != netip.AddrPortFrom(test.want, m.External.Port()) || renewed.Lifetime != time.Hour {
				t.Errorf("%v for %v, %v; want the address %v", renewed.External, renewed.Lifetime, err, test.want)
			}
			if requests := gw.Requests(); len(requests) < 2 || requests[0].Op != "map" || requests[1].Op != "external address" {
				t.Errorf("requests %v", requests)
			}
		})
	}
}

func TestSupports(t *testing.T) {
	b, err := natpmp.New(natpmp.Config{
		Gateway: netip.MustParseAddrPort("192.0.2.1:5351"), Source: netip.MustParseAddr("192.0.2.10"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	base := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("0.0.0.0:80")}
	for name, test := range map[string]struct {
		change func(*backends.Request)
		want   error
	}{
		"plain":       {func(*backends.Request) {}, nil},
		"own address": {func(r *backends.Request) { r.Internal = netip.MustParseAddrPort("192.0.2.10:80") }, nil},
		"suggested address": {func(r *backends.Request) {
			r.External = netip.MustParseAddrPort("198.51.100.1:80")
		}, nil},
		"exact address": {func(r *backends.Request) {
			r.External, r.Exact = netip.MustParseAddrPort("198.51.100.1:80"), true
		}, backends.ErrUnsupported},
		"another host": {func(r *backends.Request) { r.Internal = netip.MustParseAddrPort("192.0.2.11:80") }, backends.ErrUnsupported},
		"IPv6":         {func(r *backends.Request) { r.Internal = netip.MustParseAddrPort("[2001:db8::1]:80") }, backends.ErrUnsupported},
		"remote peer":  {func(r *backends.Request) { r.Remote = netip.MustParseAddrPort("198.51.100.1:0") }, backends.ErrUnsupported},
		"permanent":    {func(r *backends.Request) { r.Lifetime = backends.Forever }, backends.ErrUnsupported},
		"SCTP":         {func(r *backends.Request) { r.Protocol = backends.SCTP }, backends.ErrUnsupported},
		"no port":      {func(r *backends.Request) { r.Internal = netip.AddrPort{} }, backends.ErrInvalid},
	} {
		r := base
		test.change(&r)
		if err := b.Supports(r); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

// TestCheckAddress checks that a check reports another external address once. The state of the
// mapping is unknown then, because Watch is about to report the change.
func TestCheckAddress(t *testing.T) {
	gw := start(t, gatewaytest.Config{})
	b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	m, err := b.Map(t.Context(), backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080")})
	if err != nil {
		t.Fatal(err)
	}
	gw.SetExternal(netip.MustParseAddr("45.45.45.99"))
	if err := b.Check(t.Context(), m); err == nil || errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("the first check: %v, want an error for an unknown state", err)
	}
	if err := b.Check(t.Context(), m); !errors.Is(err, backends.ErrUnsupported) {
		t.Errorf("the second check: %v, want ErrUnsupported", err)
	}
}
