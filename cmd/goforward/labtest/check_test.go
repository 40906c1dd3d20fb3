package labtest

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/internal/testseed"
)

// longChecks selects the long forms of the tests of checks: the default interval, and a router
// that is away for minutes.
var longChecks = os.Getenv("GOFORWARD_CHECKS") == "all"

const (
	// checkTimeout bounds a check of a router that does not reply. A check that began before
	// the router replies again may end this much later. It is less than half of the default
	// interval, so that only short intervals need it.
	checkTimeout = 10 * time.Second
	// firstLookUp is the time between the grant of a mapping by UPnP and its first lookup. One
	// mapping is looked up in each second.
	firstLookUp = 4 * time.Second
	// fewMappings is the largest number of mappings for which a test waits until each was
	// checked.
	fewMappings = 3
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

// waitForRounds waits until each program has checked n mappings, one in a round, and the
// router's epoch is larger than the deviation that the standard tolerates. It also waits for the
// first lookups of n mappings, which would restore mappings without a round.
func waitForRounds(t *testing.T, home *lab.HomeNet, n int) {
	t.Helper()
	passTime(t, max(time.Duration(n)*checkInterval()*5/4, firstLookUp+time.Duration(n)*time.Second))
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
	rounds := min(len(all[0].mappings), fewMappings)
	waitForRounds(t, home, rounds)
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
			external := h.External
			if h.wait(maxWait); h.External != external || h.Failure != nil {
				t.Errorf("%s: %+v", h.name, h.state)
			}
		}
		switch n := len(p.mappings); {
		case n > rounds: // the first lookups of some mappings may show the loss before
		case shown && outage > 0 && p.mappings[0].Backend == "upnp": // a lookup may show the loss while the client queries the device that it found again
			p.wantLosses(n, append(restartReasons["upnp"], missingReason)...)
		case shown:
			p.wantLosses(n, restartReasons[p.mappings[0].Backend]...)
		case p.hasTable: // after an outage, a client searches for the device
			p.wantLosses(n, missingReason, bootIDReason)
		default:
			p.wantLosses(0)
		}
		p.close()
	}
	wantRules(t, home, 0)
}

// TestCheckRestartMany is TestCheckRestart with many mappings of one program.
func TestCheckRestartMany(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		protocols []string
		router    string
		n         int
	}{
		"natpmp, the epoch":                {[]string{"natpmp"}, "the clock starts at 0", 50},
		"natpmp, renewals":                 {[]string{"natpmp"}, "the clock goes on", 4},
		"natpmp beside UPnP, a lookup":     {[]string{"natpmp", "upnp"}, "the clock goes on", 50},
		"upnp, a lookup":                   {[]string{"upnp"}, "the clock goes on", 50},
		"pcp, the epoch (long)":            {[]string{"pcp"}, "the clock starts at 0", 50},
		"pcp, renewals (long)":             {[]string{"pcp"}, "the clock goes on", 4},
		"pcp beside UPnP, a lookup (long)": {[]string{"pcp", "upnp"}, "the clock goes on", 50},
		"upnp, the uptime (long)":          {[]string{"upnp"}, "the clock starts at 0", 50},
	} {
		if strings.HasSuffix(name, "(long)") && !longChecks {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "check: the router restarts without an announcement, many mappings, "+name)
			router := restartRouters[c.router]
			home := lab.Home(t, router)
			suppressAnnouncements(t, home)
			all := []*checkedProgram{startChecked(t, home, home.Lan, firstPort, c.n, config{Protocols: c.protocols, CheckEvery: checkInterval()})}
			reachAll(t, home, all)
			testCheckRestart(t, home, all, 0, router.DaemonUptime)
		})
	}
}

// deleteByUPnP deletes mappings in the same way as another program on this host. The programs
// are stopped meanwhile, so that they notice all deletions at once.
func deleteByUPnP(t *testing.T, home *lab.HomeNet, all []*checkedProgram, n int) {
	t.Helper()
	for _, p := range all {
		p.proc.Signal(stopSignal)
	}
	for _, p := range all {
		for _, h := range p.mappings[:n] {
			port := strconv.Itoa(int(h.External.Port()))
			home.Lan.Exec(t, "upnpc", "-u", "http://"+home.Gateway.String()+":5000/rootDesc.xml", "-d", port, h.echo.Network)
			home.DoesNotReach(t, h.echo, h.External)
		}
	}
	for _, p := range all {
		p.proc.Signal(continueSignal)
	}
}

const (
	missingReason = "the mapping is missing from the gateway's table" // by a lookup
	bootIDReason  = "the gateway restarted: its BOOTID changed"       // by a search for the device
)

// restartReasons are the reasons of a loss that the router shows by its epoch or uptime, by the
// protocol of the mapping.
var restartReasons = map[string][]string{
	"natpmp": {"the gateway's clock went back"},
	"pcp":    {"the gateway's clock jumped"},
	"upnp":   {"the gateway's connection was restarted: its uptime is shorter than expected", bootIDReason},
}

// wantLosses checks that the program reported the loss and the restoration of n mappings, with
// one of these reasons, and nothing else.
func (p *checkedProgram) wantLosses(n int, reasons ...string) {
	p.t.Helper()
	counts, want := map[forward.EventKind]int{}, map[forward.EventKind]int{}
	if n > 0 {
		want = map[forward.EventKind]int{forward.EventLost: n, forward.EventRestored: n}
	}
	for range 2 * n {
		e := p.nextEvent()
		if counts[e.Kind]++; e.Kind == forward.EventLost && !slices.Contains(reasons, e.Reason) {
			p.t.Errorf("%s: event %v: %s, want: %q", p.name, e.Kind, e.Reason, reasons)
		}
	}
	p.wantNoEvent()
	if !maps.Equal(counts, want) {
		p.t.Errorf("%s: events %v, want %v", p.name, counts, want)
	}
}

// TestCheckDeleted checks mappings that are deleted while the router runs: by another program,
// one of several or all, or by the command nft on the router. Then the daemon still reports the
// mappings, until it changes its table for the next time: it keeps a copy of the table.
func TestCheckDeleted(t *testing.T) {
	t.Parallel()
	const n = 2
	for name, c := range map[string]struct {
		deleted int // of each program; 0: the rules are flushed
		promise func(*checkedProgram) time.Duration
	}{
		"one, by another program": {1, byRound},
		"all, by another program": {n, promises(false)},
		"all, by nft":             {0, byRound}, // the renewals by NAT-PMP and PCP change the table
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "check: mappings are deleted, "+name)
			home := lab.Home(t, lab.Router{})
			all := startAllChecked(t, home, n)
			waitForRounds(t, home, n) // a table shows only the loss of a mapping that it has listed
			if c.deleted > 0 {
				deleteByUPnP(t, home, all, c.deleted)
			} else {
				home.Daemon.Forget(t)
			}
			wantRestored(t, home, all, c.promise)
			for _, p := range all {
				switch {
				case c.deleted > 0 && p.hasTable && p.mappings[0].Backend != "upnp": // a renewal can come before the lookup
				case c.deleted > 0 && p.hasTable:
					p.wantLosses(c.deleted, missingReason)
				case c.deleted > 0: // a renewal does not show the loss
					p.wantLosses(0)
				}
				p.close()
			}
			wantRules(t, home, 0)
		})
	}
}

// TestCheckNew checks a router that deletes a new mapping three seconds after the grant. The
// first lookup finds out, long before the first round of checks.
func TestCheckNew(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "check: a mapping disappears three seconds after the grant")
	home := lab.Home(t, upnpOnly)
	const deleteAfter = 3 * time.Second
	all := []*checkedProgram{startChecked(t, home, home.Lan, firstPort, 2, config{Protocols: []string{"upnp"}, CheckEvery: 10 * time.Minute})}
	granted := all[0].mappings[0].Grants[0].Granted
	reachAll(t, home, all)
	passTime(t, time.Until(granted.Add(deleteAfter)))
	deleteByUPnP(t, home, all, 1)
	wantRestored(t, home, all, func(*checkedProgram) time.Duration { return firstLookUp - deleteAfter })
	all[0].wantLosses(1, missingReason)
	all[0].close()
	wantRules(t, home, 0)
}

// TestCheckAddress checks a router that gets another external address and does not announce
// it. Then the address changes and changes back, and a check may or may not see it.
func TestCheckAddress(t *testing.T) {
	t.Parallel()
	for name, router := range restartRouters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "check: another external address, without an announcement, "+name)
			home := lab.Home(t, router)
			suppressAnnouncements(t, home)
			all := startAllChecked(t, home, 1)
			waitForRounds(t, home, 1)
			home.Router.Sysctl(t, "net.ipv4.conf.wan0.promote_secondaries", "1")
			const first, second, third = "45.45.45.1", "45.45.45.77", "45.45.45.78"
			want := netip.AddrFrom4([4]byte{45, 45, 45, 77})

			begin, stalls := time.Now(), measureStalls()
			replaceAddress(t, home, first, second)
			events := map[*checkedProgram]event{}
			for _, p := range all {
				events[p] = p.wantAddress(want)
			}
			stalled := stalls()
			for _, p := range all {
				promise, took := promises(false)(p), events[p].Time.Sub(begin)
				t.Logf("%s: the event arrived after %v; the promise is %v", p.name, took.Round(time.Millisecond), promise)
				if took > promise+checkMargin+stalled {
					t.Errorf("%s: the event arrived after %v, want %v and at most %v more", p.name, took, promise, checkMargin)
				}
			}
			passTime(t, checkInterval())
			for _, p := range all {
				p.mappings[0].fetchState() // after all events
				p.wantNoEvent()
			}

			replaceAddress(t, home, second, third)
			passTime(t, checkInterval()/3)
			replaceAddress(t, home, third, second)
			passTime(t, checkInterval()*3/2)
			for _, p := range all {
				h := p.mappings[0]
				if h.wait(maxWait); h.External.Addr() != want || h.Failure != nil {
					t.Errorf("%s: %+v", h.name, h.state)
				}
				home.Reaches(t, h.echo, h.External)
				p.close()
			}
			wantRules(t, home, 0)
		})
	}
}

// wantAddress waits for the event that reports another external address. The epoch of this
// router restarts with each address. PCP shows nothing but that before the mapping is renewed,
// so that the mapping may be lost and restored.
func (p *checkedProgram) wantAddress(want netip.Addr) event {
	p.t.Helper()
	e := p.nextEvent()
	kind, reason := forward.EventChanged, "the external address was 45.45.45.1 and is "+want.String()
	if e.Kind == forward.EventLost && p.mappings[0].Backend == "pcp" {
		kind, reason = forward.EventRestored, e.Reason
		e = p.nextEvent()
	}
	if e.Kind != kind || e.Reason != reason || e.External.Addr() != want {
		p.t.Errorf("%s: event %v of %v: %s", p.name, e.Kind, e.External, e.Reason)
	}
	return e
}

// replaceAddress replaces the external address of the router at once.
func replaceAddress(t *testing.T, home *lab.HomeNet, before, after string) {
	t.Helper()
	home.Daemon.Signal(t, stopSignal) // so that the daemon does not run between two addresses
	home.Router.Exec(t, "sh", "-ec", "ip addr add "+after+"/24 dev wan0; ip addr del "+before+"/24 dev wan0")
	home.Daemon.Signal(t, continueSignal)
}

// TestCheckLoss checks restarts and lookups over a line that loses a fifth of the packets in
// each direction. Some rounds fail.
func TestCheckLoss(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "check: the router restarts without an announcement, 20 % loss")
	home := lab.Home(t, restartRouters["the clock starts at 0"])
	suppressAnnouncements(t, home)
	var all []*checkedProgram
	hosts := newCabledHosts(t, home, 3)
	for i, l := range hosts {
		protocol := []string{"natpmp", "pcp", "upnp"}[i]
		all = append(all, startChecked(t, home, l.host, firstPort+uint16(100*i), 2, config{Protocols: []string{protocol}, CheckEvery: checkInterval()}))
		l.cable.Set(lab.Line{OneIn: 5, Seed: testseed.Of(t), Peer: home.Gateway})
	}
	reachAll(t, home, all) // these bytes pass through the cables unchanged
	waitForRounds(t, home, 1)
	powerOff(t, home)
	home.Daemon.Start(t)
	wantRestored(t, home, all, func(*checkedProgram) time.Duration { return 4*checkInterval() + checkTimeout })
	for i, l := range hosts {
		fromHost, toHost := l.cable.Lost()
		t.Logf("%s: the cable lost %d packets from the host and %d packets to the host", all[i].name, fromHost, toHost)
		if fromHost+toHost == 0 {
			t.Errorf("%s: the cable lost no packets", all[i].name)
		}
	}
}

// traffic is a number of packets and the sum of their lengths.
type traffic struct{ packets, bytes int }

func (c traffic) minus(other traffic) traffic {
	return traffic{c.packets - other.packets, c.bytes - other.bytes}
}

// trafficKinds are the packets between a host and the router that are counted. The key is the
// comment of a rule, and the first value is the hook. In the condition, the address of the host
// is missing.
var trafficKinds = map[string][2]string{
	"NAT-PMP and PCP requests":    {"prerouting", "udp dport 5351 ip saddr"},
	"NAT-PMP and PCP replies":     {"output", "udp sport 5351 ip daddr"},
	"searches for UPnP":           {"prerouting", "udp dport 1900 ip saddr"},
	"TCP packets to the router":   {"prerouting", "tcp dport 5000 ip saddr"},
	"TCP packets from the router": {"output", "tcp sport 5000 ip daddr"},
	"other packets from the host": {"prerouting", "meta l4proto { tcp, udp } th dport != { 5000, 5351, 1900 } ip saddr"},
}

// countTraffic counts the packets between the hosts and the router.
func countTraffic(t *testing.T, home *lab.HomeNet, hosts ...*lab.Host) {
	t.Helper()
	for _, host := range hosts {
		for kind, rule := range trafficKinds {
			home.Router.Rule(t, rule[0], fmt.Sprintf(`%s %v counter comment "%s, %s"`, rule[1], host.Addr(), host.Name(), kind))
		}
	}
	home.Router.Rule(t, "prerouting", `iifname "lan0" meta nfproto ipv6 meta l4proto { tcp, udp } counter comment "`+overIPv6Packets+`"`)
}

// overIPv6Packets is the key of the packets of all hosts over IPv6.
const overIPv6Packets = "all hosts, packets over IPv6"

var trafficCounter = regexp.MustCompile(`counter packets (\d+) bytes (\d+) comment "([^"]*)"`)

// readTraffic returns the present counts. The keys are "host, kind".
func readTraffic(t *testing.T, home *lab.HomeNet) map[string]traffic {
	t.Helper()
	counts := map[string]traffic{}
	for _, m := range trafficCounter.FindAllStringSubmatch(home.Router.Ruleset(t), -1) {
		packets, err1 := strconv.Atoi(m[1])
		bytes, err2 := strconv.Atoi(m[2])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		counts[m[3]] = traffic{packets, bytes}
	}
	return counts
}

// TestCheckCost counts the packets of programs that only hold mappings: those with checks, and
// one for each protocol without checks, which must send nothing.
func TestCheckCost(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "check: the packets of a minute, with checks and without")
	home := lab.Home(t, lab.Router{})
	suppressAnnouncements(t, home) // by UPnP, this router announces itself every half a minute, and a client queries its state
	var checked, hosts []*lab.Host
	for i := range checkedProtocols {
		checked = append(checked, home.Join(fmt.Sprintf("checked%d", i), fmt.Sprintf("192.168.77.%d/24", 10+i)))
	}
	hosts = append(hosts, home.Lan)
	hosts = append(hosts, checked...)
	countTraffic(t, home, hosts...)
	var all []*checkedProgram
	for i, protocols := range checkedProtocols {
		startChecked(t, home, home.Lan, firstPort+uint16(100*i), 1, config{Protocols: protocols, CheckEvery: -1})
		all = append(all, startChecked(t, home, checked[i], firstPort+uint16(100*i+50), 3, config{Protocols: protocols, CheckEvery: checkInterval()}))
	}
	idle := func() (n int) {
		for kind := range trafficKinds {
			n += readTraffic(t, home)[home.Lan.Name()+", "+kind].packets
		}
		return n
	}
	waitUntil(t, maxWait, "the programs do not become idle", func() bool { // their first requests may still be in flight
		before := idle()
		passTime(t, checkInterval()/4)
		return idle() == before
	})
	passTime(t, checkInterval())

	before, begin := readTraffic(t, home), time.Now()
	passTime(t, 4*checkInterval())
	after, rounds := readTraffic(t, home), float64(time.Since(begin))/float64(checkInterval())
	for kind := range trafficKinds {
		key := home.Lan.Name() + ", " + kind
		t.Logf("without checks: %d %s before, %d in %v", before[key].packets, kind, after[key].minus(before[key]).packets, time.Since(begin).Round(time.Second))
		if n := after[key].minus(before[key]).packets; n > 0 {
			t.Errorf("without checks: %d %s", n, kind)
		}
	}
	if n := after[overIPv6Packets].minus(before[overIPv6Packets]).packets; n > 0 {
		t.Errorf("%d packets over IPv6", n)
	}
	const perHour = float64(time.Hour / forward.DefaultCheckEvery)
	for i, p := range all {
		var sum traffic
		for _, kind := range slices.Sorted(maps.Keys(trafficKinds)) {
			key := checked[i].Name() + ", " + kind
			n := after[key].minus(before[key])
			sum.packets, sum.bytes = sum.packets+n.packets, sum.bytes+n.bytes
			if n.packets > 0 {
				t.Logf("%s: in each round %.1f %s with %.0f bytes", p.name, float64(n.packets)/rounds, kind, float64(n.bytes)/rounds)
			}
		}
		t.Logf("%s: in each round %.1f packets with %.0f bytes; by default in an hour %.0f packets with %.0f kB", p.name,
			float64(sum.packets)/rounds, float64(sum.bytes)/rounds, float64(sum.packets)/rounds*perHour, float64(sum.bytes)/rounds*perHour/1000)
		maxPackets := 8.0 // in a round: a check and a renewal, with a retransmission
		if p.hasTable {
			maxPackets = 60 // four requests, each on a connection of its own
		}
		if n := float64(sum.packets); n == 0 || n > maxPackets*(rounds*8/7+1) {
			t.Errorf("%s: %d packets in %.1f rounds, want at most %.0f in each", p.name, sum.packets, rounds, maxPackets)
		}
	}
}
