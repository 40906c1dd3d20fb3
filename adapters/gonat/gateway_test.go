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
	"time"

	"go.uber.org/goleak"

	nat "github.com/natforward/goforward/adapters/gonat"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a router, and a Gateway of a Forwarder that is told of it.
func start(t *testing.T, router gatewaytest.Config, order ...string) (*gatewaytest.Gateway, *forward.Forwarder, *nat.Gateway) {
	t.Helper()
	gw, err := gatewaytest.Start(router)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	c := gw.Config()
	c.Protocols = order
	f, err := forward.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	g := nat.New(f)
	t.Cleanup(func() { _ = g.Close() })
	return gw, f, g
}

// greeter says hello to whoever connects, and returns its port.
func greeter(t *testing.T) int {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); serving.Wait() })
	serving.Go(func() {
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

// reach connects from outside.
func reach(t *testing.T, gw *gatewaytest.Gateway, port int) error {
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

// occupy gives ports to another host.
func occupy(t *testing.T, gw *gatewaytest.Gateway, port int) {
	t.Helper()
	err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP,
		Internal: netip.MustParseAddrPort("127.0.0.9:80"), External: netip.AddrPortFrom(gw.External(), uint16(port)),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The port that is returned is the one that leads here, and to delete it
// deletes it, whichever protocol the gateway speaks.
func TestEveryBackend(t *testing.T) {
	for backend, title := range map[string]string{"natpmp": "NAT-PMP", "pcp": "PCP", "upnp": "UPnP"} {
		t.Run(backend, func(t *testing.T) {
			gw, _, g := start(t, gatewaytest.Config{}, backend)
			inside := greeter(t)
			occupy(t, gw, inside)
			outside, err := g.AddPortMapping(t.Context(), "tcp", inside, "greeter", 0)
			if err != nil {
				t.Fatal(err)
			}
			if outside == inside {
				t.Fatalf("port %d is another host's", inside)
			}
			if err := reach(t, gw, outside); err != nil {
				t.Error(err)
			}
			if got := g.Type(); got != title {
				t.Errorf("Type is %q, want %q", got, title)
			}
			if err := g.DeletePortMapping(t.Context(), "tcp", inside); err != nil {
				t.Error(err)
			}
			if err := reach(t, gw, outside); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("after the deletion: %v, want refused", err)
			}
			if left := gw.Table(); len(left) != 1 || g.Slots() != 0 {
				t.Errorf("the gateway has %v, we hold %d", left, g.Slots())
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	gw, _, g := start(t, gatewaytest.Config{})
	for _, test := range []struct {
		name string
		ask  func() (net.IP, error)
		want netip.Addr
	}{
		{"device", g.GetDeviceAddress, gw.Addr().Addr()},
		{"external", g.GetExternalAddress, gw.External()},
		{"internal", g.GetInternalAddress, netip.MustParseAddr("127.0.0.1")},
	} {
		if got, err := test.ask(); err != nil || len(got) != net.IPv4len || !got.Equal(test.want.AsSlice()) {
			t.Errorf("%s address %v, %v, want %v", test.name, got, err, test.want)
		}
	}
	if got := g.Type(); got != "NAT-PMP" {
		t.Errorf("Type is %q", got)
	}
	other := netip.MustParseAddr("45.45.45.99")
	gw.SetExternal(other)
	if got, err := g.GetExternalAddress(); err != nil || !got.Equal(other.AsSlice()) {
		t.Errorf("external address %v, %v, want %v", got, err, other)
	}
}

// A gateway that does not answer for a moment keeps its address while a mapping
// stands, and only then.
func TestExternalAddressRefused(t *testing.T) {
	gw, _, g := start(t, gatewaytest.Config{Protocols: []string{"natpmp"}}, "natpmp")
	inside := greeter(t)
	if _, err := g.AddPortMapping(t.Context(), "tcp", inside, "", 0); err != nil {
		t.Fatal(err)
	}
	gw.Inject(gatewaytest.Fault{Result: 3})
	if got, err := g.GetExternalAddress(); err != nil || !got.Equal(gw.External().AsSlice()) {
		t.Errorf("%v, %v, want %v", got, err, gw.External())
	}
	if err := g.DeletePortMapping(t.Context(), "tcp", inside); err == nil {
		t.Error("deleted, with a gateway that refuses")
	}
	if got, err := g.GetExternalAddress(); !errors.Is(err, nat.ErrNoExternalAddress) || !errors.Is(err, backends.ErrNetworkFailure) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDiscover(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	nat.Discover(gw.Config())
	defer nat.Discover(nil)
	defer nat.Close()
	found, err := nat.DiscoverGateway(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []nat.NAT
	for n := range nat.DiscoverNATs(t.Context()) {
		all = append(all, n)
	}
	if len(all) != 1 || all[0] != found {
		t.Errorf("found %v, then %v", found, all)
	}
	inside := greeter(t)
	outside, err := found.AddPortMapping(t.Context(), "tcp", inside, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := reach(t, gw, outside); err != nil {
		t.Error(err)
	}
	if err := nat.Close(); err != nil {
		t.Error(err)
	}
	if left := gw.Table(); len(left) != 0 {
		t.Errorf("closed, and the gateway has %v", left)
	}
	if again, err := nat.DiscoverGateway(t.Context()); err != nil || again == found {
		t.Errorf("after Close: %v, %v", again, err)
	}
}

func TestDiscoverNothing(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := gw.Config()
	c.DiscoveryTimeout = 100 * time.Millisecond
	nat.Discover(c)
	defer nat.Discover(nil)
	defer nat.Close()
	gw.Close()
	if found, err := nat.DiscoverGateway(t.Context()); found != nil || !errors.Is(err, nat.ErrNoNATFound) || !errors.Is(err, backends.ErrNoReply) {
		t.Errorf("found %v, %v", found, err)
	}
	for n := range nat.DiscoverNATs(t.Context()) {
		t.Errorf("found %v", n)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := nat.DiscoverGateway(ctx); !errors.Is(err, cause) {
		t.Errorf("with an ended context: %v", err)
	}
	nat.Discover(&forward.Config{DiscoveryTimeout: -1})
	_ = nat.Close()
	if _, err := nat.DiscoverGateway(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("with an invalid config: %v", err)
	}
}
