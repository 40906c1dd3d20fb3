package natpmp_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/attack"
)

// FuzzClient: whatever becomes of a gateway's answers, every call ends in its
// time, and what it says was granted makes sense.
func FuzzClient(f *testing.F) {
	gw, err := gatewaytest.Start(gatewaytest.Config{Protocols: []string{"natpmp", "pcp"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = gw.Close() })
	for _, seed := range attack.Seeds() {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		defer gw.Inject(gatewaytest.Fault{Corrupt: attack.NewMutator(program).Mutate})()
		defer gw.Restart(gatewaytest.RestartOptions{Silent: true})
		b, err := natpmp.New(natpmp.Config{
			Gateway: gw.Addr(), Transmissions: 3, FirstWait: 2 * time.Millisecond, LongestWait: 4 * time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		defer attack.Watchdog()()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r := backends.Request{
			Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 8080), External: netip.AddrPortFrom(netip.Addr{}, 8081),
		}
		if err := attack.Exercise(ctx, b, r); err != nil {
			t.Error(err)
		}
		// The client has less to say: ports and a lifetime.
		m, err := b.Client().Map(ctx, natpmp.MapRequest{Protocol: backends.UDP, InternalPort: 9090})
		if err == nil && (m.InternalPort != 9090 && m.InternalPort != 0 || m.ExternalPort == 0 || m.Lifetime <= 0 || m.Protocol != backends.UDP) {
			t.Errorf("Map: %+v", m)
		}
	})
}
