package upnp_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// TestExternalAddrNotStale checks that a mapping may have an external address
// queried shortly before, but not one that the device no longer has.
func TestExternalAddrNotStale(t *testing.T) {
	for name, remap := range map[string]func(context.Context, *upnp.Backend, backends.Mapping) (backends.Mapping, error){
		"mapped": func(ctx context.Context, b *upnp.Backend, _ backends.Mapping) (backends.Mapping, error) {
			return b.Map(ctx, request(8080, 9000))
		},
		"renewed": func(ctx context.Context, b *upnp.Backend, m backends.Mapping) (backends.Mapping, error) {
			return b.Renew(ctx, m, request(8080, 9000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, b := startBackend(t, quirks.UPnP{})
			gw.Inject(gatewaytest.Fault{Match: isAction("AddPortMapping"), Delay: 20 * time.Millisecond}) // keeps the number of requests small
			m := mustMap(t, gw, b, request(8080, 9000))
			if m.External.Addr() != gw.External() {
				t.Fatalf("mapped at %v, but the gateway has %v", m.External, gw.External())
			}
			moved := netip.MustParseAddr("45.45.45.99")
			gw.SetExternal(moved)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for m.External.Addr() != moved {
				if ctx.Err() != nil {
					t.Fatalf("%s repeatedly: still at %v, but the gateway has %v", name, m.External.Addr(), moved)
				}
				var err error
				if m, err = remap(t.Context(), b, m); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
