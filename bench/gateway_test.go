package bench

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/gatewaytest"
)

// loopbackGateway has an address of its own, because go-nat-pmp knows port 5351 alone.
var loopbackGateway = netip.MustParseAddrPort("127.0.0.77:5351")

func startGateway(t testing.TB, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gw.Close() })
	return gw
}

// coldGateway is the cold start without a router's work: what is left is the library's.
func (b *bench) coldGateway(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{Listen: loopbackGateway, Protocols: []string{"natpmp", "pcp"}})
	to := target{Gateway: loopbackGateway.Addr(), Self: netip.MustParseAddr("127.0.0.1")}
	b.rounds(t, keyGateway, []string{oursTold, goNATPMPName, rawNATPMPName}, func(ctx context.Context, peer string, _ int) Sample {
		to.Peer, to.Port = peer, b.nextPort()
		return sample(here(ctx, t), to)
	})
	b.check(t, keyGateway)
	if n := len(gw.Table()); n != 0 {
		t.Errorf("%d mappings are left", n)
	}
}

// delayKey is a scenario of delays.
func delayKey(d time.Duration) string { return fmt.Sprintf("%s %v", keyDelay, d) }

// What the device waits before it answers a search: a device may choose up to MX,
// which is a second here.
var ssdpDelays = []time.Duration{0, 50 * time.Millisecond, 250 * time.Millisecond, time.Second}

const randomDelay = -1 * time.Millisecond // as a scenario: drawn for each round, the same for all

// delays is UPnP with a device whose delays are known.
func (b *bench) delays(t *testing.T) {
	all := append(ssdpDelays[:len(ssdpDelays):len(ssdpDelays)], randomDelay)
	if b.smoke {
		all = ssdpDelays[:1]
	}
	for _, d := range all {
		b.delay(t, d)
	}
}

func (b *bench) delay(t *testing.T, d time.Duration) {
	gw := startGateway(t, gatewaytest.Config{
		Listen: loopbackGateway, Protocols: []string{"upnp"},
	})
	gw.DownPCP()
	to := target{Gateway: loopbackGateway.Addr(), Self: netip.MustParseAddr("127.0.0.1"), SSDP: gw.SSDP()}
	drawn := map[int]time.Duration{}
	b.rounds(t, delayKey(d), []string{oursTold, rawUPnPName, rawCarefulName}, func(ctx context.Context, peer string, round int) Sample {
		late, is := drawn[round]
		if !is {
			late = d
			if d == randomDelay {
				late = time.Duration(b.rng.Int64N(int64(time.Second)))
			}
			drawn[round] = late
		}
		remove := gw.Inject(gatewaytest.Fault{
			Match: func(r gatewaytest.Request) bool { return r.Op == gatewaytest.OpSearch }, Delay: late,
		})
		defer remove()
		to.Peer, to.Port = peer, b.nextPort()
		s := sample(here(ctx, t), to)
		s.SSDP = late
		for _, e := range gw.Table() {
			gw.RemoveMapping(e.Protocol, e.External.Port())
		}
		return s
	})
	b.check(t, delayKey(d))
	gw.Close()
}
