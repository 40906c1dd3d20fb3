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

// wildEpochs writes another epoch into each answer: now a day, now none.
func wildEpochs(gw *gatewaytest.Gateway) {
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

const held = 10

// naiveEpochs asks for its mappings again whenever the epoch went back, until
// that is enough to have been an attack.
func naiveEpochs(t *testing.T, gw netip.AddrPort, enough int) (requests int) {
	t.Helper()
	var last uint32
	for round := true; round && requests < enough; {
		round = false
		for range held {
			b := naiveAsk(t, gw, []byte{0, 2, 0, 0, 0x1f, 0x90, 0x1f, 0x90, 0, 0, 0x0e, 0x10})
			requests++
			epoch := binary.BigEndian.Uint32(b[4:])
			round = round || epoch < last
			last = epoch
		}
	}
	return requests
}

// TestEpochStorm: a gateway whose clock runs wild in each answer, as if it had
// just started, is asked again at a measured pace.
func TestEpochStorm(t *testing.T) {
	for _, name := range []string{"natpmp", "pcp"} {
		t.Run(name, func(t *testing.T) {
			gw := router(t, gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
			wildEpochs(gw)
			if n := naiveEpochs(t, gw.Addr(), 500); n < 500 {
				t.Fatalf("the naive client asked %d times: this is no attack", n)
			}
			gw.Restart(gatewaytest.RestartOptions{Silent: true})
			gw.ResetStats()
			leaves(t, func() {
				begin := time.Now()
				f := forwarder(t, gw, forward.Config{Protocols: []string{name}})
				for i := range held {
					if _, err := f.Enable(t.Context(), forward.TCP(uint16(8080+i))); err != nil {
						t.Fatal(err)
					}
				}
				n := asked(t, gw, 1<<30, 2*time.Second)
				// At first, each mapping and a question; then three rounds and one in
				// five seconds, of a mapping and at most a question each; and a question a second.
				rounds := 1 + 3 + seconds(begin)/5 + 1
				if most := 2*held*rounds + seconds(begin) + 1; n > most {
					t.Errorf("%d requests in %d s, want %d at most", n, seconds(begin), most)
				}
				if n := len(gw.Table()); n != held {
					t.Errorf("the gateway has %d mappings", n)
				}
				if err := f.Shutdown(t.Context()); err != nil || len(gw.Table()) != 0 {
					t.Errorf("Shutdown: %v, the gateway has %v", err, gw.Table())
				}
			})
		})
	}
}

// wild is a backend whose gateway has always just restarted.
type wild struct {
	maps    atomic.Int32
	changes atomic.Int32
}

func (*wild) String() string                                   { return "wild" }
func (*wild) Supports(backends.Request) error                  { return nil }
func (*wild) Close() error                                     { return nil }
func (*wild) Unmap(context.Context, backends.Mapping) error    { return nil }
func (*wild) ExternalAddr(context.Context) (netip.Addr, error) { return netip.Addr{}, nil }
func (w *wild) Map(_ context.Context, r backends.Request) (backends.Mapping, error) {
	w.maps.Add(1)
	return backends.Mapping{
		Backend: "wild", Protocol: r.Protocol, Internal: r.Internal, External: r.External, Lifetime: time.Hour, Granted: time.Now(),
	}, nil
}

func (w *wild) Renew(ctx context.Context, _ backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return w.Map(ctx, r)
}

func (w *wild) Watch(ctx context.Context, notify func(backends.Change)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.changes.Add(1)
			notify(backends.Change{Kind: backends.Restarted, Reason: "it says so"})
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// TestChangeStorm: three minutes of changes, a hundred a second: three rounds at
// once, and one in five seconds.
func TestChangeStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wild{}
		f, err := forward.New(&forward.Config{Backends: []backends.Backend{w}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range held {
			if _, err := f.Enable(t.Context(), forward.TCP(uint16(8080+i)), forward.External(uint16(8080+i))); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Minute)
		if n := w.changes.Load(); n < 15000 { // a client that believes each asks as often, for all
			t.Fatalf("%d changes: this is no attack", n)
		}
		if n, most := w.maps.Load(), int32(held*(1+3+180/5+1)); n > most || n < held*30 {
			t.Errorf("asked %d times, want %d at most", n, most)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestShortLeases: mappings granted for a second are renewed twice a second, and
// no more often.
func TestShortLeases(t *testing.T) {
	if d := naiveRenewal(1); d > time.Second/2 {
		t.Fatalf("the naive client waits for %v", d)
	}
	gw := router(t, gatewaytest.Config{MaxLifetime: time.Second, Protocols: []string{"natpmp", "pcp"}})
	f := forwarder(t, gw, forward.Config{Protocols: []string{"natpmp"}})
	begin := time.Now()
	m, err := f.Enable(t.Context(), forward.TCP(8080))
	if err != nil {
		t.Fatal(err)
	}
	n := asked(t, gw, 1<<30, 2500*time.Millisecond)
	if most := 2 * (2 + 2*seconds(begin)); n > most {
		t.Errorf("%d requests in %d s, want %d at most", n, seconds(begin), most)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}
