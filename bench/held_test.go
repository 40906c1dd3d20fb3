package bench

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/forward"
)

const heldCount = 10000

// generous is a backend that grants everything and has no table, so that what is
// measured is the Forwarder's.
type generous struct {
	mu     sync.Mutex
	renews int
	second time.Time
	burst  int // in that second
	most   int
}

var (
	generousAddr = netip.MustParseAddr("45.45.45.1")
	generousHost = netip.MustParseAddr("192.0.2.10")
	generousGate = netip.MustParseAddrPort("192.0.2.1:5351")
)

func (*generous) String() string                                   { return "generous" }
func (*generous) Close() error                                     { return nil }
func (*generous) Supports(r backends.Request) error                { return r.Check() }
func (*generous) ExternalAddr(context.Context) (netip.Addr, error) { return generousAddr, nil }
func (*generous) Unmap(context.Context, backends.Mapping) error    { return nil }

func (*generous) Map(_ context.Context, r backends.Request) (backends.Mapping, error) {
	return backends.Mapping{
		Backend: "generous", Gateway: generousGate, Protocol: r.Protocol,
		Internal: netip.AddrPortFrom(generousHost, r.Internal.Port()), External: netip.AddrPortFrom(generousAddr, r.External.Port()),
		Description: r.Description, Lifetime: r.Lifetime, Granted: time.Now(),
	}, nil
}

func (g *generous) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	g.mu.Lock()
	g.renews++
	if second := time.Now().Truncate(time.Second); second.Equal(g.second) {
		g.burst++
	} else {
		g.second, g.burst = second, 1
	}
	g.most = max(g.most, g.burst)
	g.mu.Unlock()
	r.External = m.External
	return g.Map(ctx, r)
}

// holdMany enables heldCount mappings.
func holdMany(t testing.TB, g *generous) *forward.Forwarder {
	t.Helper()
	f, err := forward.New(&forward.Config{Backends: []backends.Backend{g}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint16(heldCount) {
		if _, err := f.Enable(t.Context(), forward.TCP(1024+i)); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// held measures what many mappings cost, and the rest that takes no rounds.
func (b *bench) held(t *testing.T) {
	b.heap(t)
	b.hour(t)
	b.figure(figureAllocs, codecAllocs(t), "for each message")
	info, err := os.Stat(os.Getenv(commandEnv))
	if err != nil {
		t.Fatal(err)
	}
	b.figure(figureBinary, float64(info.Size())/(1<<20), "MiB")
}

func (b *bench) heap(t *testing.T) {
	before, idle := liveHeap(), runtime.NumGoroutine()
	f := holdMany(t, &generous{})
	defer f.Close()
	b.figure(figureHeap, float64(liveHeap()-before)/heldCount, "bytes")
	b.figure(figureGoroutines, float64(runtime.NumGoroutine()-idle), "")
	runtime.KeepAlive(f)
}

// liveHeap is the bytes of the heap in use.
func liveHeap() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers and pools held
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// hour lets renewals begin, at half of the lifetime, and measures an hour of them
// on a clock that does not have to be waited for.
func (b *bench) hour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &generous{}
		f := holdMany(t, g)
		defer f.Close()
		time.Sleep(forward.DefaultLifetime)
		g.mu.Lock()
		before := g.renews
		g.mu.Unlock()
		cpu := processorTime()
		time.Sleep(time.Hour)
		synctest.Wait()
		spent := processorTime() - cpu
		g.mu.Lock()
		defer g.mu.Unlock()
		b.figure(figureCPU, ms(spent), "ms")
		b.figure(figureRenewals, float64(g.renews-before), "")
		b.figure(figureBurst, float64(g.most), "")
	})
}

// codecAllocs is how often the codecs of NAT-PMP and PCP allocate, at most.
func codecAllocs(t *testing.T) float64 {
	var buf [1100]byte
	natpmpAnswer := []byte{0, 129, 0, 0, 0, 0, 0, 9, 0x23, 0x28, 0x23, 0x28, 0, 0, 0x0e, 0x10}
	pcpAnswer := append([]byte{2, 0x81, 0, 0, 0, 0, 0x0e, 0x10, 0, 0, 0, 9}, make([]byte, 48)...)
	pcpAnswer[36] = 17 // UDP
	codecs := map[string]func() error{
		"natpmp request": func() error {
			_, err := natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 9000, ExternalPort: 9000, Lifetime: lifetime}.AppendBinary(buf[:0])
			return err
		},
		"natpmp answer": func() error { _, err := natpmp.ParseMapResponse(natpmpAnswer); return err },
		"pcp request": func() error {
			_, err := pcp.MapRequest{Client: generousHost, Protocol: backends.UDP, InternalPort: 9000, Lifetime: lifetime}.AppendBinary(buf[:0])
			return err
		},
		"pcp answer": func() error { _, err := pcp.ParseMapResponse(pcpAnswer); return err },
	}
	most := 0.0
	for name, codec := range codecs {
		if err := codec(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		n := testing.AllocsPerRun(100, func() { _ = codec() })
		t.Logf("%s: %v allocations", name, n)
		most = max(most, n)
	}
	return most
}

// BenchmarkHeld enables and closes ten thousand mappings.
func BenchmarkHeld(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		holdMany(b, &generous{}).Close()
	}
}
