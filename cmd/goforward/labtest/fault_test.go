package labtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// allFaults is whether every step is tried, and not just some of many.
var allFaults = os.Getenv("GOFORWARD_FAULTS") == "all"

// seed is what the random choices of a test depend on. It is the same in every run,
// so that a test does not fail by chance. GOFORWARD_SEED sets another one, or with
// "random" a new one, which the test logs.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(1)
	switch text := os.Getenv("GOFORWARD_SEED"); text {
	case "":
	case "random":
		s = rand.Uint64N(100_000)
	default:
		if _, err := fmt.Sscan(text, &s); err != nil {
			t.Fatalf("GOFORWARD_SEED: %v", err)
		}
	}
	t.Logf("GOFORWARD_SEED=%d", s)
	return s
}

// vital is one of the numbers that tell whether a process leaks.
func vital(op string) (n int, ok bool) {
	switch op {
	case "goroutines":
		return runtime.NumGoroutine(), true
	case "files":
		entries, err := os.ReadDir("/proc/self/fd")
		return len(entries), err == nil
	case "heap":
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int(stats.HeapAlloc), true
	}
	return 0, false
}

// vital asks the agent for one.
func (a *agent) vital(op string) int {
	a.t.Helper()
	return a.do(call{Op: op}).Count
}

// quiesces waits until the agent has no more goroutines than it had.
func (a *agent) quiesces(had int) {
	a.t.Helper()
	now := 0
	until(a.t, patience, "goroutines are left over", func() bool {
		now = a.vital("goroutines")
		return now <= had
	})
}

// eventually asks again and again, and reports whether it was done in time. It
// asks less often than until, as a process is started to ask a router.
func eventually(within time.Duration, done func() bool) bool {
	over := time.After(within)
	tick := time.NewTicker(5 * again)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-over:
			return false
		}
	}
	return true
}

// lane is a host of a home that has a cable and an agent of its own, so that one
// router serves many that come to grief at different moments.
type lane struct {
	*agent
	home  *lab.HomeNet
	host  *lab.Host
	cable *lab.Cable
	calm  int // its goroutines when it does nothing
}

// lanes adds so many hosts to the home.
func lanes(t *testing.T, home *lab.HomeNet, n int) []*lane {
	t.Helper()
	all := cabled(t, home, n)
	for _, l := range all {
		l.agent = start(t, l.host)
	}
	for _, l := range all {
		l.calm = l.vital("goroutines")
	}
	return all
}

// cabled is lanes without the agents.
func cabled(t *testing.T, home *lab.HomeNet, n int) []*lane {
	t.Helper()
	// A segment is a frame, so that there are as many steps as on a real wire.
	home.Router.Exec(t, "ip", "link", "set", "lan0", "gso_max_segs", "1")
	var all []*lane
	for i := range n {
		host, cable := home.JoinByCable(fmt.Sprintf("lane%d", i), fmt.Sprintf("192.168.77.%d/24", 100+i))
		host.Exec(t, "ip", "link", "set", "eth0", "gso_max_segs", "1")
		all = append(all, &lane{home: home, host: host, cable: cable})
	}
	return all
}

// entries are the router's port forwardings, as HomeNet.Rules tells them. The
// program that lists them may hang in the kernel: it is started again.
func entries(t *testing.T, home *lab.HomeNet) (rules []string) {
	t.Helper()
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), patience/2)
		list, err := home.Router.Run(ctx, "nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")
		cancel()
		if err != nil {
			t.Log(err)
			continue
		}
		for line := range strings.Lines(list) {
			if strings.Contains(line, "dnat") {
				rules = append(rules, strings.TrimSpace(line))
			}
		}
		return rules
	}
	t.Fatal("the router's entries cannot be listed")
	return nil
}

// rulesTo are the router's entries that lead to a host, to a port of it unless
// that is 0.
func rulesTo(t *testing.T, home *lab.HomeNet, host *lab.Host, port uint16) []string {
	t.Helper()
	want := " " + host.Addr().String() + ":"
	if port != 0 {
		want = " " + netip.AddrPortFrom(host.Addr(), port).String() + " "
	}
	var rules []string
	for _, rule := range entries(t, home) {
		if strings.Contains(rule+" ", want) {
			rules = append(rules, rule)
		}
	}
	return rules
}

// rootDescription is where a router describes itself: who knows it need not
// search.
func rootDescription(home *lab.HomeNet) string {
	return fmt.Sprintf("http://%s:5000/rootDesc.xml", home.Gateway)
}

// portTo is the port that an entry leads to.
func portTo(rule string) int {
	_, port, _ := strings.Cut(rule[strings.LastIndex(rule, " ")+1:], ":")
	n, _ := strconv.Atoi(port)
	return n
}

// why is what a mapping says of its last attempt.
func why(f *failure) string {
	if f == nil {
		return "no attempt has failed"
	}
	return f.Text
}

// tally counts what was tried and what came of it.
type tally struct {
	tried, survived int
	lost            []string
}

func (c *tally) count(err error, format string, args ...any) {
	c.tried++
	if err == nil {
		c.survived++
		return
	}
	c.lost = append(c.lost, fmt.Sprintf(format, args...)+": "+err.Error())
}

// tell logs the line of a table, and fails the test if anything was lost.
func (c *tally) tell(t *testing.T, what, note string) {
	t.Helper()
	t.Logf("%-48s tried %4d  survived %4d  lost %d  %s", what, c.tried, c.survived, len(c.lost), note)
	for _, lost := range c.lost {
		t.Errorf("%s: %s", what, lost)
	}
}
