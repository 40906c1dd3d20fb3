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

// cold measures every candidate on a router of the lab, each time in a new process.
func (b *bench) cold(t *testing.T, s scenario) {
	home := lab.Home(t, s.router)
	to := target{Gateway: home.Gateway, Self: home.Lan.Addr(), Command: os.Getenv(commandEnv)}
	names := s.candidates
	if b.smoke && s.key != keyAll { // keyAll has checked the other candidates
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
			p, _ := candidateNamed(name)
			return !p.raw && p.module != rootModule
		})
	}
	b.rounds(t, s.key, names, func(ctx context.Context, candidate string, _ int) Sample {
		to.Candidate, to.Port = candidate, b.nextPort()
		s := sample(home.Lan.Command(ctx, executable(t)), to)
		resetRouter(ctx, t, home, candidate)
		return s
	})
	if !s.noGateway {
		b.checkFailures(t, s.key)
	}
}

// resetRouter deletes the mappings that a candidate left on the router, so that the next
// candidate finds the same state.
func resetRouter(ctx context.Context, t *testing.T, home *lab.HomeNet, candidate string) {
	rules, err := home.Router.Run(ctx, "nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")
	if err != nil { // the rest of the run can continue
		t.Logf("after %s: %v", candidate, err)
	}
	if n := strings.Count(rules, "dnat"); n > 0 {
		t.Logf("%s left %d mappings", candidate, n)
		home.Daemon.Restart(t)
	}
}

// rounds measures every candidate in each round. Slow candidates take part in fewer rounds.
func (b *bench) rounds(t *testing.T, key string, names []string, measure func(ctx context.Context, candidate string, round int) Sample) {
	every := map[string]int{}
	for round := range b.Rounds {
		for i, name := range b.shuffled(names) {
			if n := every[name]; n > 0 && round%n != 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), startupTimeout+watchdog+cleanupTimeout)
			s := measure(ctx, name, round)
			cancel()
			s.Scenario, s.Round, s.Order = key, round, i
			b.add(s)
			if every[name] == 0 {
				every[name] = b.interval(s.Took)
			}
		}
		b.logProgress("%s: round %d of %d", key, round+1, b.Rounds)
	}
}

// interval returns n if a candidate takes part in every n-th round. The time limit for the
// candidate and the duration of its first sample determine n.
func (b *bench) interval(first time.Duration) int {
	total := first * time.Duration(b.Rounds)
	return max(1, int((total+b.Spend-1)/b.Spend))
}

// checkFailures fails a short run if a sample of goforward or of raw sockets failed. In a full
// run, the report contains the failures.
func (b *bench) checkFailures(t *testing.T, key string) {
	for _, s := range b.Samples {
		if s.Scenario != key || s.Err == "" {
			continue
		}
		p, _ := candidateNamed(s.Candidate)
		if b.smoke && (p.raw || p.module == rootModule) {
			t.Errorf("%s, round %d: %s", s.Candidate, s.Round, s.Err)
		} else {
			t.Logf("%s, round %d: %s", s.Candidate, s.Round, s.Err)
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

// localCommand returns a command that runs this binary in the same network namespace.
func localCommand(ctx context.Context, t *testing.T) *exec.Cmd {
	return exec.CommandContext(ctx, executable(t))
}

// loopbackGateway has a separate loopback address, because go-nat-pmp supports only port
// 5351.
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

// coldGateway measures cold starts on gatewaytest, without the delays of a real router: it
// measures mainly the time of the library.
func (b *bench) coldGateway(t *testing.T) {
	gw := startGateway(t, gatewaytest.Config{Listen: loopbackGateway, Protocols: []string{"natpmp", "pcp"}})
	to := target{Gateway: loopbackGateway.Addr(), Self: netip.MustParseAddr("127.0.0.1")}
	b.rounds(t, keyGateway, []string{goforwardGatewayName, goNATPMPName, rawNATPMPName}, func(ctx context.Context, candidate string, _ int) Sample {
		to.Candidate, to.Port = candidate, b.nextPort()
		return sample(localCommand(ctx, t), to)
	})
	b.checkFailures(t, keyGateway)
	if n := len(gw.Table()); n != 0 {
		t.Errorf("%d mappings remain", n)
	}
}

// delayKey returns the key of the scenario with that delay.
func delayKey(d time.Duration) string { return fmt.Sprintf("%s %v", keyDelay, d) }

// ssdpDelays are the delays of the device before it responds to a search. A device may
// choose a delay up to MX, which is one second in these searches.
var ssdpDelays = []time.Duration{0, 50 * time.Millisecond, 250 * time.Millisecond, time.Second}

const randomDelay = -1 * time.Millisecond // a scenario with a random delay for each round, the same for all candidates

// delays measures UPnP with a device whose delay before the SSDP response is known.
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
	delays := map[int]time.Duration{}
	b.rounds(t, delayKey(d), []string{goforwardGatewayName, rawUPnPName, rawUPnPAllName}, func(ctx context.Context, candidate string, round int) Sample {
		delay, ok := delays[round]
		if !ok {
			delay = d
			if d == randomDelay {
				delay = time.Duration(b.rng.Int64N(int64(time.Second)))
			}
			delays[round] = delay
		}
		remove := gw.Inject(gatewaytest.Fault{
			Match: func(r gatewaytest.Request) bool { return r.Op == "search" }, Delay: delay,
		})
		defer remove()
		to.Candidate, to.Port = candidate, b.nextPort()
		s := sample(localCommand(ctx, t), to)
		s.SSDP = delay
		for _, e := range gw.Table() {
			gw.RemoveMapping(e.Protocol, e.External.Port())
		}
		return s
	})
	b.checkFailures(t, delayKey(d))
	gw.Close()
}

// BenchmarkCold creates a Forwarder, enables a mapping and closes, repeatedly in a warm
// process. It is intended for profiles; TestBench measures the first call of a process.
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
