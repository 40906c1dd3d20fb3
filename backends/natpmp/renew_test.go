package natpmp_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
)

// A renewal is about the mapping: that is asked for first, and had although the
// gateway does not tell the address.
func TestRenewWithoutAddress(t *testing.T) {
	before, last, now := netip.MustParseAddr("45.45.45.1"), netip.MustParseAddr("45.45.45.2"), netip.MustParseAddr("45.45.45.3")
	for name, c := range map[string]struct {
		fault gatewaytest.Fault
		fresh bool // a client that has never been told
		want  netip.Addr
	}{
		"told":              {gatewaytest.Fault{}, false, now},
		"silent":            {gatewaytest.Fault{Drop: true}, false, last},
		"silent from first": {gatewaytest.Fault{Drop: true}, true, before},
		"refused":           {gatewaytest.Fault{Result: int(natpmp.NetworkFailure)}, false, netip.Addr{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw, err := gatewaytest.Start(gatewaytest.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = gw.Close() }()
			client := func() *natpmp.Backend {
				b, err := natpmp.New(natpmp.Config{Gateway: gw.Addr(), Transmissions: 2, FirstWait: 500 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = b.Close() })
				return b
			}
			b := client()
			m, err := b.Map(t.Context(), backends.Request{Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080")})
			if err != nil || m.External.Addr() != before {
				t.Fatalf("%v, %v", m.External, err)
			}
			gw.SetExternal(last)
			if _, err := b.ExternalAddr(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.Forget()
			if c.fresh {
				b = client()
			}
			gw.SetExternal(now)
			gw.ResetStats()
			c.fault.Match = func(r gatewaytest.Request) bool { return r.Op == "external address" }
			gw.Inject(c.fault)
			renewed, err := b.Renew(t.Context(), m, backends.Request{Lifetime: time.Hour})
			if err != nil || renewed.External != netip.AddrPortFrom(c.want, m.External.Port()) || renewed.Lifetime != time.Hour {
				t.Errorf("%v for %v, %v; want the address %v", renewed.External, renewed.Lifetime, err, c.want)
			}
			if asked := gw.Requests(); len(asked) < 2 || asked[0].Op != "map" || asked[1].Op != "external address" {
				t.Errorf("asked %v", asked)
			}
		})
	}
}
