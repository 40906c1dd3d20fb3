package libp2pnat

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	_ "github.com/natforward/goforward/internal/holders/unshared"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds the wait for an expected event.
const testTimeout = 30 * time.Second

// timeoutContext returns a context that ends after testTimeout.
func timeoutContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// fakeNetwork is a network.Network that has only listeners. Like a swarm, it sends a
// notification after the change, while it holds the lock that StopNotify acquires.
type fakeNetwork struct {
	network.Network

	mu    sync.Mutex
	addrs []ma.Multiaddr

	notifyMu  sync.RWMutex
	notifiees []network.Notifiee
}

func (l *fakeNetwork) ListenAddresses() []ma.Multiaddr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.addrs)
}

func (l *fakeNetwork) Notify(n network.Notifiee) {
	l.notifyMu.Lock()
	defer l.notifyMu.Unlock()
	l.notifiees = append(l.notifiees, n)
}

func (l *fakeNetwork) StopNotify(n network.Notifiee) {
	l.notifyMu.Lock()
	defer l.notifyMu.Unlock()
	if i := slices.Index(l.notifiees, n); i >= 0 {
		l.notifiees = slices.Delete(l.notifiees, i, i+1)
	}
}

// listen adds listen addresses, and notifies of each.
func (l *fakeNetwork) listen(addrs ...string) {
	for _, s := range addrs {
		addr := ma.StringCast(s)
		l.mu.Lock()
		l.addrs = append(l.addrs, addr)
		l.mu.Unlock()
		l.notifyMu.RLock()
		for _, n := range l.notifiees {
			n.Listen(l, addr)
		}
		l.notifyMu.RUnlock()
	}
}

// unlisten removes listen addresses, and notifies of each.
func (l *fakeNetwork) unlisten(addrs ...string) {
	for _, s := range addrs {
		addr := ma.StringCast(s)
		l.mu.Lock()
		l.addrs = slices.DeleteFunc(l.addrs, addr.Equal)
		l.mu.Unlock()
		l.notifyMu.RLock()
		for _, n := range l.notifiees {
			n.ListenClose(l, addr)
		}
		l.notifyMu.RUnlock()
	}
}

// fixture is a manager with its network, gateway and Forwarder.
type fixture struct {
	*fakeNetwork
	*manager
	gateway   *gatewaytest.Gateway
	forwarder *forward.Forwarder
}

// start starts a manager behind a test gateway. Its GetMapping waits up to testTimeout.
func start(t *testing.T, config gatewaytest.Config, listen ...string) *fixture {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	f, err := forward.New(&forward.Config{
		Gateway: gw.Addr(), RequestTimeout: testTimeout,
		Test: forward.TestNetwork{SSDP: gw.SSDP(), Announce: netip.MustParseAddrPort("127.0.0.1:0"), Notify: netip.MustParseAddrPort("127.0.0.1:0")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	r := &fixture{fakeNetwork: &fakeNetwork{}, gateway: gw, forwarder: f}
	r.listen(listen...)
	r.manager = newManager(r.fakeNetwork, f)
	r.grantWait = testTimeout
	r.start()
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// wantAnnounced checks the announced address of a listen address. If want is empty, there must
// be none.
func (r *fixture) wantAnnounced(t *testing.T, listen, want string) {
	t.Helper()
	got := r.GetMapping(ma.StringCast(listen))
	if want == "" && got != nil || want != "" && (got == nil || got.String() != want) {
		t.Errorf("GetMapping(%s) is %v, want %q", listen, got, want)
	}
}

// table returns the protocol and internal port of each mapping of the gateway.
func (r *fixture) table() []string {
	out := []string{}
	for _, e := range r.gateway.Table() {
		out = append(out, e.Protocol.String()+" "+netip.AddrPortFrom(netip.IPv4Unspecified(), e.Internal.Port()).String())
	}
	slices.Sort(out)
	return out
}

// waitUnmapped waits until the gateway has received n unmap requests.
func (r *fixture) waitUnmapped(t *testing.T, n int) {
	t.Helper()
	_, err := r.gateway.AwaitRequests(timeoutContext(t), n, func(q gatewaytest.Request) bool { return q.Op == "unmap" })
	if err != nil {
		t.Fatalf("waiting for %d unmap requests: %v", n, err)
	}
	r.deletions.Wait()
}

// occupyPort maps an external port to another host.
func (r *fixture) occupyPort(t *testing.T, p backends.Protocol, port uint16) {
	t.Helper()
	err := r.gateway.AddMapping(gatewaytest.Entry{
		Protocol: p, Internal: netip.MustParseAddrPort("127.0.0.9:80"), External: netip.AddrPortFrom(r.gateway.External(), port),
	})
	if err != nil {
		t.Fatal(err)
	}
}
