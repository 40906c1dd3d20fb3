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

const mappingCount = 10000

// grantingBackend is a backend that grants every request and has no table, so that the
// memory and the time of the Forwarder alone are measured.
type grantingBackend struct {
	mu           sync.Mutex
	renewals     int
	second       time.Time
	burst        int // renewals in that second
	maxPerSecond int
}

var (
	grantingExternal = netip.MustParseAddr("45.45.45.1")
	grantingHost     = netip.MustParseAddr("192.0.2.10")
	grantingGateway  = netip.MustParseAddrPort("192.0.2.1:5351")
)

func (*grantingBackend) String() string                    { return "generous" }
func (*grantingBackend) Close() error                      { return nil }
func (*grantingBackend) Supports(r backends.Request) error { return r.Check() }
func (*grantingBackend) ExternalAddr(context.Context) (netip.Addr, error) {
	return grantingExternal, nil
}
func (*grantingBackend) Unmap(context.Context, backends.Mapping) error { return nil }

func (*grantingBackend) Map(_ context.Context, r backends.Request) (backends.Mapping, error) {
	return backends.Mapping{
		Backend: "generous", Gateway: grantingGateway, Protocol: r.Protocol,
		Internal: netip.AddrPortFrom(grantingHost, r.Internal.Port()), External: netip.AddrPortFrom(grantingExternal, r.External.Port()),
		Description: r.Description, Lifetime: r.Lifetime, Granted: time.Now(),
	}, nil
}

func (g *grantingBackend) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	g.mu.Lock()
	g.renewals++
	if second := time.Now().Truncate(time.Second); second.Equal(g.second) {
		g.burst++
	} else {
		g.second, g.burst = second, 1
	}
	g.maxPerSecond = max(g.maxPerSecond, g.burst)
	g.mu.Unlock()
	r.External = m.External
	return g.Map(ctx, r)
}

// enableMany enables mappingCount mappings.
func enableMany(t testing.TB, g *grantingBackend) *forward.Forwarder {
	t.Helper()
	f, err := forward.New(&forward.Config{Backends: []backends.Backend{g}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint16(mappingCount) {
		if _, err := f.Enable(t.Context(), forward.TCP(1024+i)); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// held measures the cost of many mappings, and the other figures that need no rounds.
func (b *bench) held(t *testing.T) {
	b.measureHeap(t)
	b.measureHour(t)
	b.figure(figureAllocs, codecAllocs(t), "for each message")
	b.measureSize(t, figureOneliner, os.Getenv(onelinerEnv))
	b.measureSize(t, figureBinary, os.Getenv(commandEnv))
}

func (b *bench) measureSize(t *testing.T, figure, path string) {
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b.figure(figure, float64(info.Size())/(1<<20), "MiB")
}

func (b *bench) measureHeap(t *testing.T) {
	before := liveHeap()
	f := enableMany(t, &grantingBackend{})
	b.figure(figureHeap, float64(liveHeap()-before)/mappingCount, "bytes")
	goroutines := runtime.NumGoroutine()
	if err := f.Close(); err != nil { // it waits for its goroutines
		t.Error(err)
	}
	b.figure(figureGoroutines, float64(goroutines-runtime.NumGoroutine()), "")
}

// liveHeap returns the number of bytes of the heap in use.
func liveHeap() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // frees the memory that finalizers and pools held
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// measureHour measures an hour of renewals on a fake clock. Renewals begin at half of the
// lifetime, so it first waits for one lifetime.
func (b *bench) measureHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &grantingBackend{}
		f := enableMany(t, g)
		defer f.Close()
		time.Sleep(forward.DefaultLifetime)
		g.mu.Lock()
		before := g.renewals
		g.mu.Unlock()
		cpu := processorTime()
		time.Sleep(time.Hour)
		synctest.Wait()
		used := processorTime() - cpu
		g.mu.Lock()
		defer g.mu.Unlock()
		b.figure(figureCPU, ms(used), "ms")
		b.figure(figureRenewals, float64(g.renewals-before), "")
		b.figure(figureBurst, float64(g.maxPerSecond), "")
	})
}

// codecAllocs returns the largest number of allocations of a NAT-PMP or PCP codec.
func codecAllocs(t *testing.T) float64 {
	var buf [1100]byte
	natpmpResponse := []byte{0, 129, 0, 0, 0, 0, 0, 9, 0x23, 0x28, 0x23, 0x28, 0, 0, 0x0e, 0x10}
	pcpResponse := append([]byte{2, 0x81, 0, 0, 0, 0, 0x0e, 0x10, 0, 0, 0, 9}, make([]byte, 48)...)
	pcpResponse[36] = 17 // UDP
	codecs := map[string]func() error{
		"natpmp request": func() error {
			_, err := natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 9000, ExternalPort: 9000, Lifetime: lifetime}.AppendBinary(buf[:0])
			return err
		},
		"natpmp response": func() error { _, err := natpmp.ParseMapResponse(natpmpResponse); return err },
		"pcp request": func() error {
			_, err := pcp.MapRequest{Client: grantingHost, Protocol: backends.UDP, InternalPort: 9000, Lifetime: lifetime}.AppendBinary(buf[:0])
			return err
		},
		"pcp response": func() error { _, err := pcp.ParseMapResponse(pcpResponse); return err },
	}
	maxAllocs := 0.0
	for name, codec := range codecs {
		if err := codec(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		n := testing.AllocsPerRun(100, func() { _ = codec() })
		t.Logf("%s: %v allocations", name, n)
		maxAllocs = max(maxAllocs, n)
	}
	return maxAllocs
}

// BenchmarkHeld enables and closes ten thousand mappings.
func BenchmarkHeld(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		enableMany(b, &grantingBackend{}).Close()
	}
}
