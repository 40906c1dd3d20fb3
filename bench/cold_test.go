package bench

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

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
