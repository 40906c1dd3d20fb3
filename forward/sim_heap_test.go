package forward_test

import (
	"context"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// generous is a backend without a table, which grants everything.
type generous struct{ name string }

func (g *generous) String() string                                   { return g.name }
func (g *generous) Close() error                                     { return nil }
func (g *generous) Supports(r backends.Request) error                { return r.Check() }
func (g *generous) ExternalAddr(context.Context) (netip.Addr, error) { return external, nil }
func (g *generous) Unmap(context.Context, backends.Mapping) error    { return nil }
func (g *generous) Renew(ctx context.Context, _ backends.Mapping, r backends.Request) (backends.Mapping, error) {
	return g.Map(ctx, r)
}

func (g *generous) Map(_ context.Context, r backends.Request) (backends.Mapping, error) {
	return backends.Mapping{
		Backend: g.name, Gateway: simAddr, Protocol: r.Protocol, Internal: netip.AddrPortFrom(here, r.Internal.Port()),
		External: netip.AddrPortFrom(external, r.External.Port()), Description: r.Description,
		Lifetime: r.Lifetime, Granted: time.Now(),
	}, nil
}

// liveHeap returns the bytes of the heap that are in use.
func liveHeap() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers and pools held
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// A held mapping takes little, and no goroutine.
func TestHeld(t *testing.T) {
	const (
		n              = 10000
		most           = 1536 // bytes
		mostGoroutines = 12
	)
	f, err := forward.New(&forward.Config{Backends: []backends.Backend{&generous{"generous"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before, idle := liveHeap(), runtime.NumGoroutine()
	for i := range uint16(n) {
		if _, err := f.Enable(t.Context(), forward.TCP(1024+i)); err != nil {
			t.Fatal(err)
		}
	}
	each := (liveHeap() - before) / n
	t.Logf("%d bytes for each mapping", each)
	if each > most {
		t.Errorf("%d bytes for each mapping, want at most %d", each, most)
	}
	if more := runtime.NumGoroutine() - idle; more > mostGoroutines {
		t.Errorf("%d goroutines for them", more)
	}
	runtime.KeepAlive(f)
}
