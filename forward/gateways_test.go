package forward_test

import (
	"context"
	"errors"
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
)

// appRoutes is what an app knows of its routes.
type appRoutes struct {
	mu    sync.Mutex
	list  []discover.Gateway
	err   error
	panic bool
	block bool
	calls int
}

func (r *appRoutes) gateways(ctx context.Context) ([]discover.Gateway, error) {
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

func (r *appRoutes) set(change func(r *appRoutes)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// The default routes come from Config.Gateways if that is set: before a request, and
// regularly. A mapping follows them.
func TestConfigGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two, local := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.10")
		m1, m2, routes := newMemory(), newMemory(), &appRoutes{}
		lead := func(gw netip.Addr) func(*appRoutes) {
			return func(r *appRoutes) {
				r.list = []discover.Gateway{{Addr: netip.MustParseAddr("fe80::1%test")}, {Addr: gw, Local: local, Interface: "wlan0"}}
			}
		}
		f, err := forward.New(&forward.Config{Gateways: routes.gateways})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.SetBackends(map[netip.Addr]backends.Backend{one: m1, two: m2})
		routes.set(func(r *appRoutes) { r.err = errors.New("no permission") })
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, forward.ErrNoGateway) || !strings.Contains(err.Error(), "Config.Gateways: no permission") {
			t.Errorf("the hook fails: %v", err)
		}
		routes.set(func(r *appRoutes) { r.err = nil })
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); !errors.Is(err, forward.ErrNoGateway) || !errors.Is(err, discover.ErrNoRoute) {
			t.Errorf("the hook tells none: %v", err)
		}
		routes.set(lead(one))
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil || len(m1.live()) != 1 {
			t.Fatalf("%v, the gateway has %v", err, m1.rows())
		}
		if ip, err := f.LocalIP(t.Context()); ip != local || err != nil {
			t.Errorf("LocalIP: %v, %v", ip, err)
		}
		routes.set(lead(two)) // the system tells the app, which calls Refresh
		if err := m.Refresh(t.Context()); err != nil || len(m2.live()) != 1 {
			t.Errorf("Refresh: %v, the second gateway has %v", err, m2.rows())
		}
		routes.set(lead(one)) // nobody tells
		time.Sleep(time.Minute)
		if synctest.Wait(); len(m1.live()) != 1 || len(m2.live()) != 0 {
			t.Errorf("a minute later the gateways have %v and %v", m1.rows(), m2.rows())
		}
		for name, change := range map[string]func(*appRoutes){
			"it panics": func(r *appRoutes) { r.panic = true }, "it blocks": func(r *appRoutes) { r.block = true },
		} {
			routes.set(change)
			begin := time.Now()
			m, err := f.Enable(t.Context(), forward.TCP(9090))
			if took := time.Since(begin); err != nil || took > forward.DefaultDiscoveryTimeout {
				t.Errorf("%s: %v after %v", name, err, took)
			} else if err := m.Close(); err != nil {
				t.Error(err)
			}
			routes.set(func(r *appRoutes) { r.panic, r.block = false, false })
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		routes.set(func(r *appRoutes) { r.block = true })
		if _, err := f.Enable(ctx, forward.TCP(9090)); !errors.Is(err, context.Canceled) {
			t.Errorf("the caller gave up: %v", err)
		}
		routes.set(func(r *appRoutes) { r.block, r.calls = false, 0 })
		time.Sleep(10 * time.Minute)
		routes.set(func(r *appRoutes) {
			if r.calls < 19 || r.calls > 21 {
				t.Errorf("%d calls of the hook in ten minutes", r.calls)
			}
			r.list = nil // there is no network any more
		})
		if _, err := f.Enable(t.Context(), forward.TCP(9090)); !errors.Is(err, forward.ErrNoGateway) {
			t.Errorf("without a network: %v", err)
		}
		if m.Status().State != forward.StateLost {
			t.Errorf("without a network: %+v", m.Status())
		}
		routes.set(lead(one))
		time.Sleep(time.Minute)
		if got := m1.rows(); len(got) != 1 || m.Err() != nil {
			t.Errorf("in the end the gateway has %v, and the mapping %v", got, m.Err())
		}
	})
}

// A call of the hook that takes long does not replace what a later call returned.
func TestConfigGatewaysOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, now, local := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.10")
		m1, m2, slow := newMemory(), newMemory(), make(chan struct{})
		var calls atomic.Int32
		f, err := forward.New(&forward.Config{Gateways: func(context.Context) ([]discover.Gateway, error) {
			if calls.Add(1) == 1 {
				<-slow
				return []discover.Gateway{{Addr: before, Local: local}}, nil
			}
			return []discover.Gateway{{Addr: now, Local: local}}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.SetBackends(map[netip.Addr]backends.Backend{before: m1, now: m2})
		enabled := make(chan error, 2)
		enable := func(port uint16) {
			_, err := f.Enable(t.Context(), forward.TCP(port))
			enabled <- err
		}
		go enable(8080)
		synctest.Wait()
		go enable(9090)
		synctest.Wait()
		close(slow)
		for range 2 {
			if err := <-enabled; err != nil {
				t.Error(err)
			}
		}
		if len(m1.live()) != 0 || len(m2.live()) != 2 {
			t.Errorf("the gateways have %v and %v", m1.rows(), m2.rows())
		}
	})
}

// Whatever call learns of another route moves all mappings, also one that needs no gateway.
func TestConfigGatewaysNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two, local := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.10")
		m1, m2, routes := newMemory(), newMemory(), &appRoutes{list: []discover.Gateway{{Addr: one, Local: local}}}
		f, err := forward.New(&forward.Config{Gateways: routes.gateways})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.SetBackends(map[netip.Addr]backends.Backend{one: m1, two: m2})
		if _, err := f.Enable(t.Context(), forward.TCP(8080)); err != nil {
			t.Fatal(err)
		}
		routes.set(func(r *appRoutes) { r.list = []discover.Gateway{{Addr: two, Local: local}} })
		if _, err := f.LocalIP(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second) // sooner than the hook is called again
		if synctest.Wait(); len(m1.live()) != 0 || len(m2.live()) != 1 {
			t.Errorf("the gateways have %v and %v", m1.rows(), m2.rows())
		}
	})
}
