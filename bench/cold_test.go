package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/internal/lab"
)

// cold has everybody map on a router of the lab, each time in a new process.
func (b *bench) cold(t *testing.T, s scenario) {
	home := lab.Home(t, s.router)
	to := target{Gateway: home.Gateway, Self: home.Lan.Addr(), Command: os.Getenv(commandEnv)}
	names := s.peers
	if b.smoke && s.key != keyAll { // the others have shown that they work
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
			p, _ := peerNamed(name)
			return !p.floor && p.module != rootModule
		})
	}
	b.rounds(t, s.key, names, func(ctx context.Context, peer string, _ int) Sample {
		to.Peer, to.Port = peer, b.nextPort()
		s := sample(home.Lan.Command(ctx, executable(t)), to)
		sweep(ctx, t, home, peer)
		return s
	})
	if !s.nothing {
		b.check(t, s.key)
	}
}

// sweep has the router forget what somebody has not taken away, so that the next
// one meets the same router.
func sweep(ctx context.Context, t *testing.T, home *lab.HomeNet, peer string) {
	rules, err := home.Router.Run(ctx, "nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")
	if err != nil { // no reason to lose the rest of the run
		t.Logf("after %s: %v", peer, err)
	}
	if n := strings.Count(rules, "dnat"); n > 0 {
		t.Logf("%s leaves %d behind", peer, n)
		home.Daemon.Restart(t)
	}
}

// rounds asks everybody in each round, but who is slow not in each.
func (b *bench) rounds(t *testing.T, key string, names []string, ask func(ctx context.Context, peer string, round int) Sample) {
	every := map[string]int{}
	for round := range b.Rounds {
		for i, name := range b.shuffled(names) {
			if n := every[name]; n > 0 && round%n != 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), startingUp+watchdog+cleaning)
			s := ask(ctx, name, round)
			cancel()
			s.Scenario, s.Round, s.Order = key, round, i
			b.add(s)
			if every[name] == 0 {
				every[name] = b.interval(s.Took)
			}
		}
		b.say("%s: round %d of %d", key, round+1, b.Rounds)
	}
}

// interval is in which rounds somebody takes part whose first sample took so long:
// each, every second and so on, within what may be spent on them.
func (b *bench) interval(first time.Duration) int {
	all := first * time.Duration(b.Rounds)
	return max(1, int((all+b.Spend-1)/b.Spend))
}

// check fails the short run where those failed who must not. In a long one the
// table tells who failed.
func (b *bench) check(t *testing.T, key string) {
	for _, s := range b.Samples {
		if s.Scenario != key || s.Err == "" {
			continue
		}
		p, _ := peerNamed(s.Peer)
		if b.smoke && (p.floor || p.module == rootModule) {
			t.Errorf("%s, round %d: %s", s.Peer, s.Round, s.Err)
		} else {
			t.Logf("%s, round %d: %s", s.Peer, s.Round, s.Err)
		}
	}
}

func executable(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// here is this binary in this very namespace.
func here(ctx context.Context, t *testing.T) *exec.Cmd {
	return exec.CommandContext(ctx, executable(t))
}

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
	gw.Down("natpmp", "pcp")
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
			Match: func(r gatewaytest.Request) bool { return r.Op == "search" }, Delay: late,
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

// BenchmarkCold makes a Forwarder, enables and closes, over and over in a warm
// process: for profiles. What a first time takes is TestBench's matter.
func BenchmarkCold(b *testing.B) {
	b.Run("natpmp", func(b *testing.B) {
		loopCold(b, &forward.Config{Gateway: netip.AddrPortFrom(natpmpGateway(b), 0)})
	})
	b.Run("upnp", func(b *testing.B) {
		gw := startGateway(b, gatewaytest.Config{Protocols: []string{"upnp"}})
		gw.Down("natpmp", "pcp")
		loopCold(b, &forward.Config{Gateway: gw.Addr(), Test: forward.TestNetwork{SSDP: gw.SSDP()}})
		for name, n := range gw.Stats().Requests {
			b.ReportMetric(float64(n)/float64(b.N), strings.ReplaceAll(name, " ", "-")+"/op")
		}
	})
}

func loopCold(b *testing.B, config *forward.Config) {
	b.ReportAllocs()
	for b.Loop() {
		f, err := forward.New(config)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Enable(b.Context(), forward.UDP(warmPort)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		f.Close()
		b.StartTimer()
	}
}
