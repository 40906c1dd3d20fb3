package labtest

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// longChecks selects the long forms of the tests of checks: the default interval, and a router
// that is away for minutes.
var longChecks = os.Getenv("GOFORWARD_CHECKS") == "all"

const (
	// checkTimeout bounds a check of a router that does not reply. A check that began before
	// the router replies again may end this much later. It is less than half of the default
	// interval, so that only short intervals need it.
	checkTimeout = 10 * time.Second
	// checkMargin is what a busy machine may need for the requests of a check, and for the
	// requests that restore the mappings of one program. It is short compared with the lifetime
	// of two hours: without checks, no mapping would be restored in time.
	checkMargin = 5 * time.Second
)

// checkInterval returns the interval of the checks.
func checkInterval() time.Duration {
	if longChecks {
		return forward.DefaultCheckEvery
	}
	return 2 * time.Second
}

// checkedProtocols are the protocols that each program of a test may use. The program maps by
// the first one. If another one is UPnP, the mappings are looked up in the router's table.
var checkedProtocols = [][]string{{"natpmp"}, {"pcp"}, {"upnp"}, {"natpmp", "upnp"}, {"pcp", "upnp"}}

// checkedProgram is a program with mappings that are checked.
type checkedProgram struct {
	*remoteForwarder
	name     string
	hasTable bool
	mappings []*heldMapping
}

// startChecked starts a program with n mappings. The router has the ports from firstPort.
func startChecked(t *testing.T, home *lab.HomeNet, host *lab.Host, port uint16, n int, c config) *checkedProgram {
	t.Helper()
	p := &checkedProgram{
		remoteForwarder: newForwarder(t, host, c),
		name:            c.Protocols[0], hasTable: slices.Contains(c.Protocols, "upnp"),
	}
	if len(c.Protocols) > 1 {
		p.name += " beside UPnP"
	}
	var ids []int
	for i := range uint16(n) {
		network := []string{"udp", "tcp"}[i%2]
		h := &heldMapping{name: fmt.Sprintf("%s, %s port %d", p.name, network, port+i), echo: host.Echo(t, network, fmt.Sprintf(":%d", port+i))}
		p.mappings = append(p.mappings, h)
		ids = append(ids, p.beginEnable(option{Name: network, Port: port + i}))
	}
	for i, h := range p.mappings {
		m, err := p.toMapping(p.await(ids[i]))
		if err != nil {
			t.Fatalf("%s: %v", h.name, err)
		}
		h.mapping = m
		if m.Backend != c.Protocols[0] || m.External != externalAddr(home, h.echo.Addr.Port()) {
			t.Fatalf("%s: %+v", h.name, m.state)
		}
		p.wantEvent(forward.EventMapped)
	}
	return p
}

// startAllChecked starts one program for each of checkedProtocols.
func startAllChecked(t *testing.T, home *lab.HomeNet, n int) (all []*checkedProgram) {
	t.Helper()
	for i, protocols := range checkedProtocols {
		all = append(all, startChecked(t, home, home.Lan, firstPort+uint16(100*i), n, config{Protocols: protocols, CheckEvery: checkInterval()}))
	}
	reachAll(t, home, all)
	return all
}

func reachAll(t *testing.T, home *lab.HomeNet, all []*checkedProgram) {
	t.Helper()
	for _, p := range all {
		for _, h := range p.mappings {
			home.Reaches(t, h.echo, h.External)
		}
	}
}

// passTime waits. The tests wait for what happens, or does not happen, in the meantime.
func passTime(t *testing.T, d time.Duration) {
	t.Helper()
	begin := time.Now()
	waitUntil(t, d+maxWait, "the wait takes too long", func() bool { return time.Since(begin) > d })
}

// waitForRounds waits until each mapping was checked, and the router's epoch is larger than
// the deviation that the standard tolerates.
func waitForRounds(t *testing.T, home *lab.HomeNet) {
	t.Helper()
	passTime(t, checkInterval()*5/4)
	waitForEpoch(t, home)
}

// wantRestored checks that bytes arrive through all mappings again within the promise of their
// program, and logs the duration. The promise begins at the call.
func wantRestored(t *testing.T, home *lab.HomeNet, all []*checkedProgram, promise func(*checkedProgram) time.Duration) {
	t.Helper()
	type wait struct {
		*heldMapping
		*checkedProgram
	}
	var waits []wait
	for _, p := range all {
		for _, h := range p.mappings {
			waits = append(waits, wait{h, p})
		}
	}
	first, last, kept := map[*checkedProgram]time.Duration{}, map[*checkedProgram]time.Duration{}, map[*checkedProgram]int{}
	begin, stalls := time.Now(), measureStalls()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for round := 0; len(waits) > 0; round++ {
		waits = slices.DeleteFunc(waits, func(w wait) bool {
			if isReachable(t, home.Wan, w.echo, w.External) {
				if last[w.checkedProgram] = time.Since(begin); first[w.checkedProgram] == 0 {
					first[w.checkedProgram] = time.Since(begin)
				}
				return true
			}
			late := time.Since(begin) > 2*(promise(w.checkedProgram)+checkMargin)
			if late {
				t.Errorf("%s: no bytes arrive after %v", w.heldMapping.name, time.Since(begin).Round(time.Millisecond))
				kept[w.checkedProgram]++
			}
			return late
		})
		<-tick.C
	}
	stalled := stalls()
	for _, p := range all {
		t.Logf("%s: bytes arrived after %v, through all %d mappings after %v; the promise is %v", p.name,
			first[p].Round(time.Millisecond), len(p.mappings)-kept[p], last[p].Round(time.Millisecond), promise(p))
		if last[p] > promise(p)+checkMargin+stalled {
			t.Errorf("%s: bytes arrived through all mappings after %v (the machine paused for %v), want %v and at most %v more",
				p.name, last[p], stalled, promise(p), checkMargin)
		}
	}
}

// promises returns the promise for changes that the router shows by its epoch, and for all
// other changes.
func promises(shown bool) func(*checkedProgram) time.Duration {
	return func(p *checkedProgram) time.Duration {
		if shown || p.hasTable {
			return checkInterval() * 3 / 2
		}
		return time.Duration(len(p.mappings)+1) * checkInterval()
	}
}

// byRound is the promise if one mapping of several has changed, which only its own check shows.
func byRound(p *checkedProgram) time.Duration {
	return time.Duration(len(p.mappings)+1) * checkInterval()
}

// outages are how long a router is away that restarts.
func outages() []time.Duration {
	if longChecks {
		return []time.Duration{0, 90 * time.Second, 300 * time.Second}
	}
	return []time.Duration{0, 3 * time.Second}
}

// TestCheckRestart checks a router that restarts and does not announce it, with a long
// lifetime: the checks find out, and restore the mappings.
func TestCheckRestart(t *testing.T) {
	t.Parallel()
	for name, router := range restartRouters {
		for _, outage := range outages() {
			t.Run(fmt.Sprintf("%s, away for %v", name, outage), func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, fmt.Sprintf("check: the router restarts without an announcement, %s, away for %v", name, outage))
				home := lab.Home(t, router)
				suppressAnnouncements(t, home)
				n := 1
				if longChecks {
					n = 3
				}
				testCheckRestart(t, home, startAllChecked(t, home, n), outage, router.DaemonUptime)
			})
		}
	}
}

func testCheckRestart(t *testing.T, home *lab.HomeNet, all []*checkedProgram, outage time.Duration, shown bool) {
	t.Helper()
	waitForRounds(t, home)
	powerOff(t, home)
	for _, p := range all {
		home.DoesNotReach(t, p.mappings[0].echo, p.mappings[0].External)
	}
	if outage > 0 { // a router without power does not refuse packets
		away := home.Router.Rule(t, "input", `iifname "lan0" drop`)
		passTime(t, outage)
		away.Remove(t)
	}
	home.Daemon.Start(t)
	promise := promises(shown)
	wantRestored(t, home, all, func(p *checkedProgram) time.Duration {
		if outage > 0 && !longChecks {
			return promise(p) + checkTimeout
		}
		return promise(p)
	})
	for _, p := range all {
		for _, h := range p.mappings {
			if s := h.fetchState(); s.External != h.External || s.Failure != nil {
				t.Errorf("%s: %+v", h.name, s)
			}
		}
		p.close()
	}
	wantRules(t, home, 0)
}
