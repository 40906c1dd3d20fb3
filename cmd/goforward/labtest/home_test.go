package labtest

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

const (
	maxWait      = 20 * time.Second      // bounds what must happen
	pollInterval = 20 * time.Millisecond // between two looks at what nobody announces
)

// stalls measures for how long the machine did not run us at all, as shared ones
// do now and then for seconds, until it is stopped.
func measureStalls() (stop func() time.Duration) {
	const beat, late = 50 * time.Millisecond, 500 * time.Millisecond
	end, total := make(chan struct{}), make(chan time.Duration)
	go func() {
		var sum time.Duration
		for last := time.Now(); ; last = time.Now() {
			select {
			case <-time.After(beat):
				if gap := time.Since(last); gap > late {
					sum += gap - beat
				}
			case <-end:
				total <- sum
				return
			}
		}
	}()
	return func() time.Duration { close(end); return <-total }
}

// until asks again and again, until done or the time is over, and returns how
// long it took. Time in which the machine stood still does not count.
func waitUntil(t *testing.T, within time.Duration, what string, done func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	stop := measureStalls()
	for !done() {
		if time.Since(begin) > within {
			stalled := stop()
			if time.Since(begin) > within+stalled {
				t.Fatalf("after %v, of which the machine stood still for %v: %s", time.Since(begin), stalled, what)
			}
			begin = begin.Add(stalled)
			stop = measureStalls()
		}
		<-tick.C
	}
	return time.Since(begin) - stop()
}

// comes waits until bytes from outside arrive. It does not wait long for each
// answer: what a router drops, because its rules are half made, a sender repeats
// only after a second.
func waitReachable(t *testing.T, home *lab.HomeNet, echo lab.Echo, external netip.AddrPort, within time.Duration) time.Duration {
	t.Helper()
	return waitUntil(t, within, "no bytes arrive at "+external.String(), func() bool {
		return isReachable(t, home.Wan, echo, external)
	})
}

// goes waits until bytes from outside arrive no more.
func waitUnreachable(t *testing.T, home *lab.HomeNet, echo lab.Echo, external netip.AddrPort, within time.Duration) time.Duration {
	t.Helper()
	return waitUntil(t, within, "bytes still arrive at "+external.String(), func() bool {
		for range 2 { // one failure can be the machine's
			if _, err := home.Wan.Reach(echo, external); err == nil {
				return false
			}
		}
		return true
	})
}

// wantRules wants the router's table to have this many entries.
func wantRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	rules := home.Rules(t)
	if len(rules) < want && home.Daemon.Settled() { // one may just be made again
		rules = home.Rules(t)
	}
	if len(rules) != want {
		t.Errorf("the router has %d entries, want %d:\n%s", len(rules), want, strings.Join(rules, "\n"))
	}
}

// at is a port of the router as the world sees it.
func externalAddr(home *lab.HomeNet, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(home.External, port)
}

// neighbour is another host of the home, with a port of the router mapped to a
// server of its own by a program that is not ours.
func occupyPort(t *testing.T, home *lab.HomeNet, network string, port uint16) lab.Echo {
	t.Helper()
	host := home.Join("neighbour", "192.168.77.3/24")
	mapByNatpmpc(t, home, host, network, port)
	echo := host.Echo(t, network, ":80")
	home.Reaches(t, echo, externalAddr(home, port))
	return echo
}

// natpmpcMaps maps an external port to port 80 of a host by Debian's natpmpc, which
// takes a late answer to its first question for that to its second.
func mapByNatpmpc(t *testing.T, home *lab.HomeNet, host *lab.Host, network string, port uint16) {
	t.Helper()
	var out string
	for range 5 {
		out = host.Exec(t, "natpmpc", "-g", home.Gateway.String(), "-a", strconv.Itoa(int(port)), "80", network, "600")
		if strings.Contains(out, "Mapped public port "+strconv.Itoa(int(port))+" ") {
			return
		}
	}
	t.Fatalf("natpmpc: %s", out)
}

// trap is a rule of the router that drops packets and counts them.
type dropRule struct {
	home *lab.HomeNet
	rule *lab.Rule
}

// mapRequests are the requests for TCP mappings by NAT-PMP, and all by PCP: the
// bytes after the UDP header are 0 and 2, and 2 and 1.
const mapRequests = `iifname "lan0" udp dport 5351 @th,64,16 { 2, 0x0201 }`

func dropPackets(t *testing.T, home *lab.HomeNet, packets string) *dropRule {
	t.Helper()
	return &dropRule{home, home.Router.Rule(t, "input", packets+` counter drop comment "trap"`)}
}

var dropCount = regexp.MustCompile(`counter packets (\d+) bytes \d+ drop comment "trap"`)

// springs waits until the trap has caught n packets.
func (tr *dropRule) waitForDrops(t *testing.T, n int) {
	t.Helper()
	waitUntil(t, maxWait, "no packet came to the trap", func() bool {
		m := dropCount.FindStringSubmatch(tr.home.Router.Ruleset(t))
		if m == nil {
			t.Fatal("the router has no trap")
		}
		dropped, err := strconv.Atoi(m[1])
		return err == nil && dropped >= n
	})
}

func (tr *dropRule) remove(t *testing.T) {
	t.Helper()
	tr.rule.Remove(t)
}

// mute keeps the router from announcing anything to the home.
func suppressAnnouncements(t *testing.T, home *lab.HomeNet) *lab.Rule {
	t.Helper()
	home.Router.Rule(t, "output", `ip6 daddr ff00::/8 drop`)
	return home.Router.Rule(t, "output", `ip daddr { 224.0.0.1, 239.255.255.250 } drop`)
}
