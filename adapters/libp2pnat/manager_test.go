package libp2pnat

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

const (
	tcpAddr          = "/ip4/0.0.0.0/tcp/4001"
	quicAddr         = "/ip4/0.0.0.0/udp/4001/quic-v1"
	webTransportAddr = "/ip4/0.0.0.0/udp/4001/quic-v1/webtransport"
	webRTCAddr       = "/ip4/0.0.0.0/udp/4001/webrtc-direct"
)

// wantTable checks the protocol and internal port of each mapping of the gateway.
func wantTable(t *testing.T, r *fixture, want ...string) {
	t.Helper()
	if got := r.table(); !slices.Equal(got, want) {
		t.Errorf("the gateway forwards %q, want %q", got, want)
	}
}

// TestListeners checks that the ports of existing and later listeners are forwarded, with one
// mapping for each port. The mapping is deleted when the last listener of the port closes.
func TestListeners(t *testing.T) {
	r := start(t, gatewaytest.Config{}, tcpAddr, "/ip4/127.0.0.1/tcp/5001", "/ip6/::/tcp/4001", "/p2p-circuit")
	r.listen(quicAddr, webTransportAddr, webRTCAddr, "/ip4/127.0.0.1/udp/5001/quic-v1")
	r.wantAnnounced(t, tcpAddr, "/ip4/45.45.45.1/tcp/4001")
	r.wantAnnounced(t, quicAddr, "/ip4/45.45.45.1/udp/4001/quic-v1")
	r.wantAnnounced(t, webTransportAddr+certhash, "/ip4/45.45.45.1/udp/4001/quic-v1/webtransport"+certhash)
	r.wantAnnounced(t, webRTCAddr, "/ip4/45.45.45.1/udp/4001/webrtc-direct")
	r.wantAnnounced(t, "/ip4/127.0.0.1/tcp/5001", "")
	r.wantAnnounced(t, "/ip6/::/tcp/4001", "")
	r.wantAnnounced(t, "/ip4/0.0.0.0/tcp/4002", "") // no listener
	wantTable(t, r, "tcp 0.0.0.0:4001", "udp 0.0.0.0:4001")
	if n := r.gateway.Stats().Requests["natpmp map udp"]; n != 1 {
		t.Errorf("%d map requests for UDP, want 1", n)
	}

	r.unlisten(quicAddr, webRTCAddr)
	r.wantAnnounced(t, webTransportAddr, "/ip4/45.45.45.1/udp/4001/quic-v1/webtransport")
	wantTable(t, r, "tcp 0.0.0.0:4001", "udp 0.0.0.0:4001")
	r.unlisten(webTransportAddr)
	r.wantAnnounced(t, webTransportAddr, "")
	r.waitUnmapped(t, 1)
	wantTable(t, r, "tcp 0.0.0.0:4001")
	r.listen(quicAddr)
	r.wantAnnounced(t, quicAddr, "/ip4/45.45.45.1/udp/4001/quic-v1")
	r.unlisten(tcpAddr)
	r.waitUnmapped(t, 2)
	wantTable(t, r, "udp 0.0.0.0:4001")
}

// TestPortTaken checks that the granted port is announced if another host has the preferred
// one.
func TestPortTaken(t *testing.T) {
	r := start(t, gatewaytest.Config{})
	r.occupyPort(t, backends.UDP, 4001)
	r.listen(quicAddr, "/ip4/0.0.0.0/tcp/4003")
	got := r.GetMapping(ma.StringCast(quicAddr))
	i := slices.IndexFunc(r.gateway.Table(), func(e gatewaytest.Entry) bool {
		return e.Protocol == backends.UDP && e.Internal.Port() == 4001
	})
	if i < 0 {
		t.Fatalf("no mapping for UDP port 4001: %v", r.gateway.Table())
	}
	port := r.gateway.Table()[i].External.Port()
	want := "/ip4/45.45.45.1/udp/" + strconv.Itoa(int(port)) + "/quic-v1"
	if got == nil || got.String() != want || port == 4001 {
		t.Errorf("announced address %v, want %s", got, want)
	}
	r.wantAnnounced(t, "/ip4/0.0.0.0/tcp/4003", "/ip4/45.45.45.1/tcp/4003")
}

// TestAddressAndPortChange checks that a new external address and a new port are announced as
// soon as they are granted.
func TestAddressAndPortChange(t *testing.T) {
	r := start(t, gatewaytest.Config{}, tcpAddr)
	r.wantAnnounced(t, tcpAddr, "/ip4/45.45.45.1/tcp/4001")
	r.gateway.SetExternal(netip.MustParseAddr("45.45.45.99"))
	if err := r.forwarder.Refresh(timeoutContext(t), forward.TCP(4001)); err != nil {
		t.Fatal(err)
	}
	r.wantAnnounced(t, tcpAddr, "/ip4/45.45.45.99/tcp/4001")

	r.gateway.Restart(gatewaytest.RestartOptions{})
	r.occupyPort(t, backends.TCP, 4001)
	if err := r.forwarder.Refresh(timeoutContext(t), forward.TCP(4001)); err != nil {
		t.Fatal(err)
	}
	if got := r.GetMapping(ma.StringCast(tcpAddr)); got == nil || got.String() == "/ip4/45.45.45.99/tcp/4001" ||
		!strings.HasPrefix(got.String(), "/ip4/45.45.45.99/tcp/") {
		t.Errorf("announced address %v, but another host has port 4001", got)
	}
}

// TestGatewayStartsLater starts the gateway after the listener. The manager must find it.
func TestGatewayStartsLater(t *testing.T) {
	r := start(t, gatewaytest.Config{})
	r.gateway.Down()
	r.grantWait = 0
	r.listen(tcpAddr)
	r.wantAnnounced(t, tcpAddr, "")
	if r.HasDiscoveredNAT() {
		t.Error("HasDiscoveredNAT returns true without a gateway")
	}
	m := r.onlyMapping(t)
	waitFailure(t, m)
	if err := r.gateway.Up(); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(timeoutContext(t)); err != nil {
		t.Fatalf("%v; the last attempt: %v", err, m.Err())
	}
	r.wantAnnounced(t, tcpAddr, "/ip4/45.45.45.1/tcp/4001")
	if !r.HasDiscoveredNAT() {
		t.Error("HasDiscoveredNAT returns false with a mapping")
	}
}

// onlyMapping returns the mapping of the manager, which must have exactly one.
func (r *fixture) onlyMapping(t *testing.T) *forward.Mapping {
	t.Helper()
	r.manager.mu.Lock()
	defer r.manager.mu.Unlock()
	if len(r.entries) != 1 {
		t.Fatalf("the manager has %d mappings, want 1", len(r.entries))
	}
	for _, f := range r.entries {
		return f.mapping
	}
	return nil
}

// waitFailure waits until a request for the mapping has failed.
func waitFailure(t *testing.T, m *forward.Mapping) {
	t.Helper()
	ctx := timeoutContext(t)
	for changed := m.Changed(); m.Err() == nil; changed = m.Changed() {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("no request has failed")
		}
	}
}

// TestGetMappingWaits checks that GetMapping waits for the grant of a new mapping, and that
// Close ends the wait.
func TestGetMappingWaits(t *testing.T) {
	r := start(t, gatewaytest.Config{})
	release := make(chan struct{})
	removeFault := r.gateway.Inject(gatewaytest.Fault{
		Match: func(q gatewaytest.Request) bool { return q.Op == "map" }, Hold: release,
	})
	r.listen(tcpAddr)
	announced := make(chan ma.Multiaddr)
	getMapping := func() { announced <- r.GetMapping(ma.StringCast(tcpAddr)) }
	go getMapping()
	waitRequest := func() {
		t.Helper()
		if _, err := r.gateway.AwaitRequests(timeoutContext(t), 1, func(q gatewaytest.Request) bool { return q.Op == "map" }); err != nil {
			t.Fatal(err)
		}
	}
	waitRequest()
	select {
	case got := <-announced:
		t.Errorf("announced address %v before a grant", got)
		go getMapping()
	default:
	}
	close(release)
	if got := <-announced; got == nil || got.String() != "/ip4/45.45.45.1/tcp/4001" {
		t.Errorf("announced address %v", got)
	}

	removeFault()
	r.gateway.ResetStats()
	release = make(chan struct{})
	r.gateway.Inject(gatewaytest.Fault{
		Match: func(q gatewaytest.Request) bool { return q.Op == "map" }, Hold: release,
	})
	r.listen(quicAddr)
	go func() { announced <- r.GetMapping(ma.StringCast(quicAddr)) }()
	waitRequest()
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	if got := <-announced; got != nil {
		t.Errorf("announced address %v after Close, want none", got)
	}
	close(release)
	<-closed
}

// TestSpecificAddress checks that a listener on one address of this host requests a mapping to
// that address. This gateway lets no host map for another host, so the request fails.
func TestSpecificAddress(t *testing.T) {
	r := start(t, gatewaytest.Config{})
	r.grantWait = 0
	r.listen("/ip4/192.168.1.5/tcp/4001")
	m := r.onlyMapping(t)
	waitFailure(t, m)
	r.wantAnnounced(t, "/ip4/192.168.1.5/tcp/4001", "")
	wantTable(t, r)
	if got := m.Internal(); got != netip.MustParseAddrPort("192.168.1.5:4001") {
		t.Errorf("the mapping has internal endpoint %v, want 192.168.1.5:4001", got)
	}
}

// TestClose checks that Close deletes the mappings of the host and no others. The Forwarder
// stays open.
func TestClose(t *testing.T) {
	r := start(t, gatewaytest.Config{}, tcpAddr, quicAddr)
	other, err := r.forwarder.Enable(timeoutContext(t), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	r.wantAnnounced(t, tcpAddr, "/ip4/45.45.45.1/tcp/4001")
	r.wantAnnounced(t, quicAddr, "/ip4/45.45.45.1/udp/4001/quic-v1")
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	wantTable(t, r, "tcp 0.0.0.0:8080")
	r.wantAnnounced(t, tcpAddr, "")
	r.listen("/ip4/0.0.0.0/tcp/4002")
	r.updateMappings() // like a notification that was in progress
	if len(r.entries) > 0 || len(r.notifiees) > 0 {
		t.Errorf("after Close: mappings %v, notifiees %v, want none", r.entries, r.notifiees)
	}
	if r.HasDiscoveredNAT() {
		t.Error("HasDiscoveredNAT returns true after Close")
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

// TestCloseOwnedForwarder checks that Close closes the host's own Forwarder. If the gateway
// does not reply, Close returns an error.
func TestCloseOwnedForwarder(t *testing.T) {
	for name, silent := range map[string]bool{"replies": false, "silent": true} {
		t.Run(name, func(t *testing.T) {
			r := start(t, gatewaytest.Config{}, tcpAddr, quicAddr)
			r.ownsForwarder = true
			r.wantAnnounced(t, tcpAddr, "/ip4/45.45.45.1/tcp/4001")
			r.wantAnnounced(t, quicAddr, "/ip4/45.45.45.1/udp/4001/quic-v1")
			if silent {
				r.gateway.Inject(gatewaytest.Fault{Drop: true})
			}
			if err := r.Close(); (err != nil) != silent {
				t.Errorf("Close: %v", err)
			}
			if !silent {
				wantTable(t, r)
			}
			if _, err := r.forwarder.Enable(timeoutContext(t)); !errors.Is(err, forward.ErrClosed) {
				t.Errorf("Enable after Close: %v, want ErrClosed", err)
			}
		})
	}
}

// TestNoListeners checks that a manager without listeners makes no mapping.
func TestNoListeners(t *testing.T) {
	m := New(nil)(&fakeNetwork{})
	if m.HasDiscoveredNAT() || m.GetMapping(ma.StringCast(tcpAddr)) != nil {
		t.Error("there is a mapping without a listener")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// TestDeletionRefused checks that Close returns the error of a failed deletion, even if the
// listener was closed before.
func TestDeletionRefused(t *testing.T) {
	r := start(t, gatewaytest.Config{}, tcpAddr)
	r.wantAnnounced(t, tcpAddr, "/ip4/45.45.45.1/tcp/4001")
	r.gateway.Inject(gatewaytest.Fault{
		Match:  func(q gatewaytest.Request) bool { return q.Op == "unmap" },
		Result: int(natpmp.NotAuthorized),
	})
	r.unlisten(tcpAddr)
	if err := r.Close(); !errors.Is(err, backends.ErrNotAuthorized) {
		t.Errorf("Close: %v, want ErrNotAuthorized", err)
	}
}

// TestForwarderClosed checks the manager after the program closed the Forwarder. No address is
// announced then.
func TestForwarderClosed(t *testing.T) {
	r := start(t, gatewaytest.Config{}, tcpAddr)
	r.wantAnnounced(t, tcpAddr, "/ip4/45.45.45.1/tcp/4001")
	if err := r.forwarder.Shutdown(timeoutContext(t)); err != nil {
		t.Fatal(err)
	}
	r.listen(quicAddr)
	r.wantAnnounced(t, tcpAddr, "")
	r.wantAnnounced(t, quicAddr, "")
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestConcurrentCalls checks the manager with concurrent notifications and calls.
func TestConcurrentCalls(t *testing.T) {
	r := start(t, gatewaytest.Config{}, tcpAddr)
	r.grantWait = 0
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			r.GetMapping(ma.StringCast(tcpAddr))
			r.HasDiscoveredNAT()
		}
	})
	for i := range 4 {
		wg.Go(func() {
			listen := "/ip4/0.0.0.0/udp/" + strconv.Itoa(5000+i/2) + "/quic-v1"
			for range 20 {
				r.listen(listen)
				r.unlisten(listen)
			}
		})
	}
	wg.Go(func() {
		for range 5 {
			_ = New(r.forwarder)(r.fakeNetwork).Close()
		}
		cancel()
	})
	wg.Wait()
	r.listen(quicAddr)
	if n := len(r.entries); n != 2 {
		t.Errorf("the manager has %d mappings, want 2", n)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wantTable(t, r)
}

// directBackend is the backend of a host with a public address.
type directBackend struct{ backends.Backend }

func (directBackend) String() string                  { return "direct" }
func (directBackend) Supports(backends.Request) error { return nil }
func (directBackend) Map(_ context.Context, r backends.Request) (backends.Mapping, error) {
	endpoint := netip.AddrPortFrom(netip.MustParseAddr("45.45.45.7"), r.Internal.Port())
	return backends.Mapping{
		Backend: "direct", Protocol: r.Protocol, Internal: endpoint, External: endpoint,
		Lifetime: backends.Forever, Granted: time.Now(),
	}, nil
}
func (directBackend) Unmap(context.Context, backends.Mapping) error { return nil }

// TestNoNAT checks a host without a NAT. Its own address is announced, and HasDiscoveredNAT
// returns false.
func TestNoNAT(t *testing.T) {
	f, err := forward.New(&forward.Config{Backends: []backends.Backend{directBackend{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := newManager(&fakeNetwork{addrs: []ma.Multiaddr{ma.StringCast(tcpAddr)}}, f)
	m.grantWait = testTimeout
	m.start()
	defer m.Close()
	if got := m.GetMapping(ma.StringCast(tcpAddr)); got == nil || got.String() != "/ip4/45.45.45.7/tcp/4001" {
		t.Errorf("announced address %v, want /ip4/45.45.45.7/tcp/4001", got)
	}
	if m.HasDiscoveredNAT() {
		t.Error("HasDiscoveredNAT returns true without a NAT")
	}
}
