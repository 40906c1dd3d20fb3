package natpmp_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
)

// A mapping may come with an external address that was asked for a moment before,
// but not with one that the gateway no longer has.
func TestExternalAddrAge(t *testing.T) {
	r := backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080"), Lifetime: time.Hour}
	for name, again := range map[string]func(context.Context, *natpmp.Backend, backends.Mapping) (backends.Mapping, error){
		"mapped": func(ctx context.Context, b *natpmp.Backend, _ backends.Mapping) (backends.Mapping, error) {
			return b.Map(ctx, r)
		},
		"renewed": func(ctx context.Context, b *natpmp.Backend, m backends.Mapping) (backends.Mapping, error) {
			return b.Renew(ctx, m, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{})
			gw.Inject(gatewaytest.Fault{ // few requests rather than thousands
				Match: func(r gatewaytest.Request) bool { return r.Op == "map" }, Delay: 20 * time.Millisecond,
			})
			b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			m, err := b.Map(t.Context(), r)
			if err != nil || m.External.Addr() != gw.External() {
				t.Fatalf("mapped at %v, %v; want %v", m.External, err, gw.External())
			}
			moved := netip.MustParseAddr("45.45.45.99")
			gw.SetExternal(moved)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for m.External.Addr() != moved {
				if ctx.Err() != nil {
					t.Fatalf("%s again and again: still at %v, and the gateway is at %v", name, m.External.Addr(), moved)
				}
				if m, err = again(t.Context(), b, m); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
