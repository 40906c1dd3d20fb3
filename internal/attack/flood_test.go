package attack_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
)

// announcements are the messages of a gateway that claims to have just started: RFC
// 6886, section 3.2.1, with another external address, and RFC 6887, section 14.1.
var announcements = [][]byte{
	{0, 128, 0, 0, 0, 0, 0, 1, 6, 6, 6, 6},
	append([]byte{2, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 12)...),
}

// naiveListener trusts announcements. It takes the external address from them, and
// requests its mappings again after each announcement.
type naiveListener struct {
	external netip.Addr
	rounds   int
}

func (n *naiveListener) receive(b []byte) {
	if len(b) == 12 && b[1] == 128 {
		n.external = netip.AddrFrom4([4]byte(b[8:12]))
	}
	n.rounds++
}

// sendAnnouncements sends each forged announcement n times from an address.
func sendAnnouncements(t *testing.T, from netip.Addr, to netip.AddrPort, n int) {
	t.Helper()
	conn := listenUDP(t, netip.AddrPortFrom(from, 0))
	defer conn.Close()
	for range n {
		for _, b := range announcements {
			_, _ = conn.WriteToUDPAddrPort(b, to)
		}
	}
}

// TestForgedAnnouncement checks that an announcement is only a hint. The library
// ignores an announcement from another host. After an announcement from the
// gateway's address, it queries the gateway. A flood of such announcements causes
// only a few queries.
func TestForgedAnnouncement(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	at := gw.AnnounceAddr() // first the naive client listens here, then the library
	probe := listenUDP(t, at)
	_ = probe.SetReadDeadline(time.Now().Add(testTimeout))
	sendAnnouncements(t, attacker, at, 1)
	var naive naiveListener
	b := make([]byte, 64)
	for range announcements {
		n, err := probe.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		naive.receive(b[:n])
	}
	if naive.external != netip.AddrFrom4([4]byte{6, 6, 6, 6}) || naive.rounds != 2 {
		t.Fatalf("the naive client has %+v: the attack has no effect", naive)
	}
	_ = probe.Close()

	checkNoLeaks(t, func() {
		f := newForwarder(t, gw, forward.Config{Test: forward.TestNetwork{Announce: at}})
		m, err := f.Enable(t.Context(), forward.TCP(8080))
		if err != nil {
			t.Fatal(err)
		}
		awaitWatcher(t, gw, at)
		checkOtherHostsIgnored(t, gw, at)
		checkGatewayAddressLimited(t, gw, at)
		if m.External().AddrPort != netip.AddrPortFrom(gw.External(), 8080) || len(gw.Table()) != 1 {
			t.Errorf("the mapping is at %v, the gateway has %v", m.External(), gw.Table())
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// awaitWatcher waits until the library watches for announcements: until an
// announcement causes a request.
func awaitWatcher(t *testing.T, gw *gatewaytest.Gateway, at netip.AddrPort) {
	t.Helper()
	before := len(gw.Requests())
	for range 100 {
		sendAnnouncements(t, gatewayAddr, at, 1)
		if countRequests(t, gw, before+1, 100*time.Millisecond) > before {
			return
		}
	}
	t.Fatal("no announcement caused a request")
}

// countRequests returns the number of requests that the gateway has received, once
// there are n, or after a timeout.
func countRequests(t *testing.T, gw *gatewaytest.Gateway, n int, within time.Duration) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	got, _ := gw.AwaitRequests(ctx, n, nil)
	return len(got)
}

// checkOtherHostsIgnored checks that announcements from other hosts cause no
// request.
func checkOtherHostsIgnored(t *testing.T, gw *gatewaytest.Gateway, at netip.AddrPort) {
	t.Helper()
	awaitIdle(t, gw)
	before := len(gw.Requests())
	for _, from := range []netip.Addr{attacker, anyLocalPort.Addr(), bystander} {
		sendAnnouncements(t, from, at, 100)
	}
	if n := countRequests(t, gw, before+1, time.Second); n != before {
		t.Errorf("announcements of other hosts caused %d requests", n-before)
	}
}

// awaitIdle waits until the gateway has received no request for a while.
func awaitIdle(t *testing.T, gw *gatewaytest.Gateway) {
	t.Helper()
	for range 20 {
		n := len(gw.Requests())
		if countRequests(t, gw, n+1, 1500*time.Millisecond) == n {
			return
		}
	}
	t.Fatal("the gateway receives requests without end")
}

// checkGatewayAddressLimited checks that a flood with the gateway's address causes
// at most one query per second and a few rounds of requests for the mappings.
func checkGatewayAddressLimited(t *testing.T, gw *gatewaytest.Gateway, at netip.AddrPort) {
	t.Helper()
	begin, before := time.Now(), len(gw.Requests())
	for range 20 {
		sendAnnouncements(t, gatewayAddr, at, 100)
		_ = countRequests(t, gw, 1<<30, 100*time.Millisecond)
	}
	n := len(gw.Requests()) - before
	// NAT-PMP sends one query per second. The mapping and its external address are
	// requested in three rounds at once, and then in one round per five seconds.
	if limit := secondsSince(begin) + 1 + 2*(3+secondsSince(begin)/5+1); n == 0 || n > limit {
		t.Errorf("4000 announcements caused %d requests, want 1 to %d", n, limit)
	}
}

// secondsSince returns the number of seconds since a time, including the one that
// has begun.
func secondsSince(since time.Time) int { return int(time.Since(since)/time.Second) + 1 }

// injectEpochJumps changes the epoch in each response: alternately one day and
// zero.
func injectEpochJumps(gw *gatewaytest.Gateway) {
	var n atomic.Uint32
	gw.Inject(gatewaytest.Fault{Corrupt: func(b []byte) []byte {
		epoch := n.Add(1) % 2 * 86400
		switch {
		case len(b) >= 12 && b[0] == 0:
			binary.BigEndian.PutUint32(b[4:], epoch)
		case len(b) >= 24 && b[0] == 2:
			binary.BigEndian.PutUint32(b[8:], epoch)
		}
		return b
	}})
}

const mappingCount = 10

// naiveEpochs requests its mappings again whenever the epoch decreased, until it
// has sent limit requests.
func naiveEpochs(t *testing.T, gw netip.AddrPort, limit int) (requests int) {
	t.Helper()
	var last uint32
	for round := true; round && requests < limit; {
		round = false
		for range mappingCount {
			b := naiveExchange(t, gw, []byte{0, 2, 0, 0, 0x1f, 0x90, 0x1f, 0x90, 0, 0, 0x0e, 0x10})
			requests++
			epoch := binary.BigEndian.Uint32(b[4:])
			round = round || epoch < last
			last = epoch
		}
	}
	return requests
}

// TestEpochStorm checks that the library limits its requests if the epoch jumps in
// each response, as if the gateway had just restarted.
func TestEpochStorm(t *testing.T) {
	for _, name := range []string{"natpmp", "pcp"} {
		t.Run(name, func(t *testing.T) {
			gw := startGateway(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
			injectEpochJumps(gw)
			if n := naiveEpochs(t, gw.Addr(), 500); n < 500 {
				t.Fatalf("the naive client sent %d requests: the attack has no effect", n)
			}
			gw.Restart(gatewaytest.RestartOptions{Silent: true})
			gw.ResetStats()
			checkNoLeaks(t, func() {
				begin := time.Now()
				f := newForwarder(t, gw, forward.Config{Protocols: []string{name}})
				for i := range mappingCount {
					if _, err := f.Enable(t.Context(), forward.TCP(uint16(8080+i))); err != nil {
						t.Fatal(err)
					}
				}
				n := countRequests(t, gw, 1<<30, 2*time.Second)
				// First, a request for each mapping and a query. Then three rounds,
				// and one per five seconds, with up to two requests per mapping. In
				// addition, one query per second.
				rounds := 1 + 3 + secondsSince(begin)/5 + 1
				if limit := 2*mappingCount*rounds + secondsSince(begin) + 1; n > limit {
					t.Errorf("%d requests in %d s, want %d at most", n, secondsSince(begin), limit)
				}
				if n := len(gw.Table()); n != mappingCount {
					t.Errorf("the gateway has %d mappings", n)
				}
				if err := f.Shutdown(t.Context()); err != nil || len(gw.Table()) != 0 {
					t.Errorf("Shutdown: %v, the gateway has %v", err, gw.Table())
				}
			})
		})
	}
}

// restartingBackend is a backend that reports a gateway restart every 10 ms.
type restartingBackend struct {
	maps    atomic.Int32
	changes atomic.Int32
}

func (*restartingBackend) String() string                                   { return "wild" }
func (*restartingBackend) Supports(backends.Request) error                  { return nil }
func (*restartingBackend) Close() error                                     { return nil }
func (*restartingBackend) Unmap(context.Context, backends.Mapping) error    { return nil }
func (*restartingBackend) ExternalAddr(context.Context) (netip.Addr, error) { return netip.Addr{}, nil }

func (w *restartingBackend) Map(_ context.Context, r backends.Request) (backends.Mapping, error) {
	w.maps.Add(1)
	return backends.Mapping{
		Backend: "wild", Protocol: r.Protocol, Internal: r.Internal, External: r.External, Lifetime: time.Hour, Granted: time.Now(),
	}, nil
}

func (w *restartingBackend) Renew(ctx context.Context, _ backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return w.Map(ctx, r)
}

func (w *restartingBackend) Watch(ctx context.Context, notify func(backends.Change)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.changes.Add(1)
			notify(backends.Change{Kind: backends.Restarted, Reason: "test"})
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// TestChangeStorm checks that 100 changes per second, for three minutes, cause only
// three rounds of requests at once and then one per five seconds.
func TestChangeStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &restartingBackend{}
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{w}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range mappingCount {
			if _, err := f.Enable(t.Context(), forward.TCP(uint16(8080+i)), forward.External(uint16(8080+i))); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Minute)
		if n := w.changes.Load(); n < 15000 { // a naive client requests all mappings again after each change
			t.Fatalf("%d changes: the attack has no effect", n)
		}
		if n, limit := w.maps.Load(), int32(mappingCount*(1+3+180/5+1)); n > limit || n < mappingCount*30 {
			t.Errorf("%d requests, want %d at most", n, limit)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestShortLeases checks that a mapping granted for one second is renewed at most
// twice per second.
func TestShortLeases(t *testing.T) {
	if d := naiveRenewal(1); d > time.Second/2 {
		t.Fatalf("the naive client waits for %v", d)
	}
	gw := startGateway(t, gatewaytest.Config{MaxLifetime: time.Second, Protocols: []string{"natpmp", "pcp"}})
	f := newForwarder(t, gw, forward.Config{Protocols: []string{"natpmp"}})
	begin := time.Now()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	n := countRequests(t, gw, 1<<30, 2500*time.Millisecond)
	if limit := 2 * (2 + 2*secondsSince(begin)); n > limit {
		t.Errorf("%d requests in %d s, want %d at most", n, secondsSince(begin), limit)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
