package forward_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// TestSourceNotLocal checks that a source address that this host does not have is
// refused, even if it is a public address. No mapping is reported for it, and no request
// is sent.
func TestSourceNotLocal(t *testing.T) {
	foreignAddr := netip.MustParseAddr("45.45.45.99")
	gw, f := gatewayAndForwarder(t, forward.Config{Source: foreignAddr}, gatewaytest.Config{})
	if m, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Enable: %v, %v, want ErrInvalid", m, err)
	}
	if addr, err := f.ExternalIP(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("ExternalIP: %v, %v, want ErrInvalid", addr, err)
	}
	if addr, err := f.LocalIP(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("LocalIP: %v, %v, want ErrInvalid", addr, err)
	}
	if _, err := f.Gateway(t.Context()); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("Gateway: %v, want ErrInvalid", err)
	}
	m, err := f.Enable(t.Context(), forward.TCP(8080), forward.Background())
	if err != nil {
		t.Fatal(err)
	}
	for m.Err() == nil {
		changed := m.Changed()
		if m.Err() != nil {
			break
		}
		select {
		case <-changed:
		case <-testContext(t).Done():
			t.Fatal("no request failed")
		}
	}
	if !errors.Is(m.Err(), backends.ErrInvalid) || m.External().AddrPort != (netip.AddrPort{}) {
		t.Errorf("Enable in the background: %v, %v, want ErrInvalid", m, m.Err())
	}
	if n := len(gw.Requests()); n != 0 {
		t.Errorf("the gateway received %d requests, want none", n)
	}
}

// routeHook is a Config.Gateways hook whose result a test sets.
type routeHook struct {
	mu    sync.Mutex
	list  []discover.Gateway
	err   error
	panic bool
	block bool
	calls int
}

func (r *routeHook) gateways(ctx context.Context) ([]discover.Gateway, error) {
	r.mu.Lock()
	list, err, panics, block := r.list, r.err, r.panic, r.block
	r.calls++
	r.mu.Unlock()
	if block {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if panics {
		panic("test")
	}
	return list, err
}

func (r *routeHook) set(change func(r *routeHook)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// TestConfigGateways checks that the default routes come from Config.Gateways if it is
// set. The hook is called before requests and regularly, and mappings follow its result.
func TestConfigGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addr1, addr2, local := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.10")
		gw1, gw2, hook := newFakeGateway(), newFakeGateway(), &routeHook{}
		setGateway := func(gw netip.Addr) func(*routeHook) {
			return func(r *routeHook) {
				r.list = []discover.Gateway{{Addr: netip.MustParseAddr("fe80::1%test")}, {Addr: gw, Local: local, Interface: "wlan0"}}
			}
		}
		f, err := forward.New(&forward.Config{Gateways: hook.gateways})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.SetBackends(map[netip.Addr]backends.Backend{addr1: gw1, addr2: gw2})
		hook.set(func(r *routeHook) { r.err = errors.New("no permission") })
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, forward.ErrNoGateway) || !strings.Contains(err.Error(), "Config.Gateways: no permission") {
			t.Errorf("the hook fails: %v", err)
		}
		hook.set(func(r *routeHook) { r.err = nil })
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, forward.ErrNoGateway) || !errors.Is(err, discover.ErrNoRoute) {
			t.Errorf("the hook returns no route: %v", err)
		}
		hook.set(setGateway(addr1))
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil || len(gw1.live()) != 1 {
			t.Fatalf("%v, the gateway has %v", err, gw1.rows())
		}
		if ip, err := f.LocalIP(t.Context()); ip != local || err != nil {
			t.Errorf("LocalIP: %v, %v", ip, err)
		}
		hook.set(setGateway(addr2)) // the app notices the change and calls Refresh
		if err := m.Refresh(t.Context()); err != nil || len(gw2.live()) != 1 {
			t.Errorf("Refresh: %v, the second gateway has %v", err, gw2.rows())
		}
		hook.set(setGateway(addr1)) // the app does not call Refresh
		time.Sleep(time.Minute)
		if synctest.Wait(); len(gw1.live()) != 1 || len(gw2.live()) != 0 {
			t.Errorf("a minute later the gateways have %v and %v", gw1.rows(), gw2.rows())
		}
		for name, change := range map[string]func(*routeHook){
			"the hook panics": func(r *routeHook) { r.panic = true }, "the hook blocks": func(r *routeHook) { r.block = true },
		} {
			hook.set(change)
			start := time.Now()
			m, err := f.Enable(t.Context(), forward.TCP(9090))
			if took := time.Since(start); err != nil || took > forward.DefaultDiscoveryTimeout {
				t.Errorf("%s: %v after %v", name, err, took)
			} else if err := m.Close(); err != nil {
				t.Error(err)
			}
			hook.set(func(r *routeHook) { r.panic, r.block = false, false })
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		hook.set(func(r *routeHook) { r.block = true })
		if _, err := f.Enable(ctx, forward.TCP(9090)); !errors.Is(err, context.Canceled) {
			t.Errorf("the context of the caller is cancelled: %v", err)
		}
		hook.set(func(r *routeHook) { r.block, r.calls = false, 0 })
		time.Sleep(10 * time.Minute)
		hook.set(func(r *routeHook) {
			if r.calls < 19 || r.calls > 21 {
				t.Errorf("%d calls of the hook in ten minutes", r.calls)
			}
			r.list = nil // the network is down
		})
		if _, err := f.Enable(t.Context(), forward.TCP(9090)); !errors.Is(err, forward.ErrNoGateway) {
			t.Errorf("without a network: %v", err)
		}
		if m.Status().State != forward.StateLost {
			t.Errorf("without a network: %+v", m.Status())
		}
		hook.set(setGateway(addr1))
		time.Sleep(time.Minute)
		if got := gw1.rows(); len(got) != 1 || m.Err() != nil {
			t.Errorf("when the network is back, the gateway has %v, and the error of the mapping is %v", got, m.Err())
		}
	})
}

// TestConfigGatewaysStaleResult checks that a slow call of the hook does not replace the
// result of a later call.
func TestConfigGatewaysStaleResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		oldAddr, newAddr, local := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.10")
		gw1, gw2, release := newFakeGateway(), newFakeGateway(), make(chan struct{})
		var calls atomic.Int32
		f, err := forward.New(&forward.Config{Gateways: func(context.Context) ([]discover.Gateway, error) {
			if calls.Add(1) == 1 {
				<-release
				return []discover.Gateway{{Addr: oldAddr, Local: local}}, nil
			}
			return []discover.Gateway{{Addr: newAddr, Local: local}}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.SetBackends(map[netip.Addr]backends.Backend{oldAddr: gw1, newAddr: gw2})
		enabled := make(chan error, 2)
		enable := func(port uint16) {
			_, err := f.Enable(t.Context(), forward.TCP(port))
			enabled <- err
		}
		go enable(8080)
		synctest.Wait()
		go enable(9090)
		synctest.Wait()
		close(release)
		for range 2 {
			if err := <-enabled; err != nil {
				t.Error(err)
			}
		}
		if len(gw1.live()) != 0 || len(gw2.live()) != 2 {
			t.Errorf("the gateways have %v and %v", gw1.rows(), gw2.rows())
		}
	})
}

// TestConfigGatewaysMovesMappings checks that every call that finds another route moves
// all mappings, even a call that needs no gateway.
func TestConfigGatewaysMovesMappings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addr1, addr2, local := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.10")
		gw1, gw2, hook := newFakeGateway(), newFakeGateway(), &routeHook{list: []discover.Gateway{{Addr: addr1, Local: local}}}
		f, err := forward.New(&forward.Config{Gateways: hook.gateways})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.SetBackends(map[netip.Addr]backends.Backend{addr1: gw1, addr2: gw2})
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		hook.set(func(r *routeHook) { r.list = []discover.Gateway{{Addr: addr2, Local: local}} })
		if _, err := f.LocalIP(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // before the next regular call of the hook
		if synctest.Wait(); len(gw1.live()) != 0 || len(gw2.live()) != 1 {
			t.Errorf("the gateways have %v and %v", gw1.rows(), gw2.rows())
		}
	})
}

// TestConfigUPnPURL checks that the host of Config.UPnPURL becomes the gateway.
func TestConfigUPnPURL(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	f, err := forward.New(&forward.Config{UPnPURL: gw.UPnP().DescriptionURL(), Protocols: []string{"upnp"}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil || m.Backend() != "upnp" || len(gw.Table()) != 1 {
		t.Fatalf("Enable: %v, %v, table %v", m, err, gw.Table())
	}
	for _, r := range gw.Requests() {
		if r.Op == "search" {
			t.Error("a search was sent although the Config names the device")
		}
	}
	for _, raw := range []string{"https://127.0.0.1/x", "http://fritz.box/x", "127.0.0.1:5000", "http://"} {
		if _, err := forward.New(&forward.Config{UPnPURL: raw}); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("UPnPURL %q: %v, want ErrInvalid", raw, err)
		}
	}
}

// TestBlockedLogger checks that a logger that blocks delays neither calls nor renewals,
// and that Close returns in time.
func TestBlockedLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gw, handler := newFakeGateway(), &blockingHandler{release: make(chan struct{})}
		f := newForwarder(t, forward.Config{Logger: slog.New(handler)}, gw)
		enabled := make(chan error, 2)
		for _, port := range []uint16{8080, 8081} {
			go func() {
				_, err := f.Enable(t.Context(), forward.TCP(port))
				enabled <- err
			}()
		}
		time.Sleep(time.Minute)
		if n := len(enabled); n != 2 {
			t.Errorf("the gateway granted %d mappings one minute ago, but only %d of 2 calls of Enable have returned", len(gw.live()), n)
		}
		time.Sleep(24 * time.Hour)
		if n := len(gw.live()); n != 2 {
			t.Errorf("after one day the gateway has %d mappings, want 2", n)
		}
		closed := make(chan error, 1)
		go func() { closed <- f.Close() }()
		time.Sleep(20 * time.Second)
		if len(closed) == 0 {
			t.Error("Close has not returned after 20 s")
		}
		close(handler.release)
		for range cap(enabled) {
			if err := <-enabled; err != nil {
				t.Errorf("Enable: %v", err)
			}
		}
		<-closed
	})
}
