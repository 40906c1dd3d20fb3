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
	"github.com/natforward/goforward/internal/attack"
)

// FuzzClient checks that every call ends in time and that granted mappings are
// valid, even if the device's responses, with their headers, are corrupted.
func FuzzClient(f *testing.F) {
	var gateways []*gatewaytest.Gateway
	for version := 1; version <= 2; version++ {
		gw, err := gatewaytest.Start(gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Version: version}}})
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { _ = gw.Close() })
		gateways = append(gateways, gw)
	}
	for i, seed := range attack.Seeds() {
		f.Add(seed, i%2 == 0, i%3 == 0)
	}
	f.Fuzz(func(t *testing.T, program []byte, one, permanent bool) {
		gw := gateways[1]
		if one {
			gw = gateways[0]
		}
		defer gw.Inject(gatewaytest.Fault{Corrupt: attack.NewMutator(program).Mutate})()
		defer gw.Restart(gatewaytest.RestartOptions{Silent: true})
		b, err := upnp.New(upnp.Config{URL: gw.UPnP().DescriptionURL(), Timeout: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		b.SetRetryDelay(time.Millisecond)
		defer b.Close()
		defer attack.Watchdog()()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r := backends.Request{
			Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080), External: netip.AddrPortFrom(netip.Addr{}, 8081),
			Description: "fuzz", Lifetime: time.Hour,
		}
		if permanent {
			r.Lifetime = backends.Forever
		}
		if err := attack.Exercise(ctx, b, r); err != nil {
			t.Error(err)
		}
		rows := 0
		for e, err := range b.List(ctx) {
			if rows++; err != nil && ctx.Err() == nil && rows > upnp.MaxEntries {
				t.Errorf("%d rows, %v, %v", rows, e, err)
			}
		}
	})
}
