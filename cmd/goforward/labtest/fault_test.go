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
func resourceUse(op string) (n int, ok bool) {
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
func (a *agent) resourceUse(op string) int {
	a.t.Helper()
	return a.do(call{Op: op}).Count
}

// quiesces waits until the agent has no more goroutines than it had.
func (a *agent) waitForGoroutines(limit int) {
	a.t.Helper()
	now := 0
	waitUntil(a.t, maxWait, "goroutines are left over", func() bool {
		now = a.resourceUse("goroutines")
		return now <= limit
	})
}

// eventually asks again and again, and reports whether it was done in time. It
// asks less often than until, as a process is started to ask a router.
func eventually(within time.Duration, done func() bool) bool {
	over := time.After(within)
	tick := time.NewTicker(5 * pollInterval)
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
type cabledClient struct {
	*agent
	home           *lab.HomeNet
	host           *lab.Host
	cable          *lab.Cable
	idleGoroutines int // its goroutines when it does nothing
}

// lanes adds so many hosts to the home.
func newCabledClients(t *testing.T, home *lab.HomeNet, n int) []*cabledClient {
	t.Helper()
	all := newCabledHosts(t, home, n)
	for _, l := range all {
		l.agent = start(t, l.host)
	}
	for _, l := range all {
		l.idleGoroutines = l.resourceUse("goroutines")
	}
	return all
}

// cabled is lanes without the agents.
func newCabledHosts(t *testing.T, home *lab.HomeNet, n int) []*cabledClient {
	t.Helper()
	// A segment is a frame, so that there are as many steps as on a real wire.
	home.Router.Exec(t, "ip", "link", "set", "lan0", "gso_max_segs", "1")
	var all []*cabledClient
	for i := range n {
		host, cable := home.JoinByCable(fmt.Sprintf("lane%d", i), fmt.Sprintf("192.168.77.%d/24", 100+i))
		host.Exec(t, "ip", "link", "set", "eth0", "gso_max_segs", "1")
		all = append(all, &cabledClient{home: home, host: host, cable: cable})
	}
	return all
}

// entries are the router's port forwardings, as HomeNet.Rules tells them. The
// program that lists them may hang in the kernel: it is started again.
func listRules(t *testing.T, home *lab.HomeNet) (rules []string) {
	t.Helper()
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), maxWait/2)
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
func rulesForHost(t *testing.T, home *lab.HomeNet, host *lab.Host, port uint16) []string {
	t.Helper()
	want := " " + host.Addr().String() + ":"
	if port != 0 {
		want = " " + netip.AddrPortFrom(host.Addr(), port).String() + " "
	}
	var rules []string
	for _, rule := range listRules(t, home) {
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
func internalPort(rule string) int {
	_, port, _ := strings.Cut(rule[strings.LastIndex(rule, " ")+1:], ":")
	n, _ := strconv.Atoi(port)
	return n
}

// why is what a mapping says of its last attempt.
func failureText(f *failure) string {
	if f == nil {
		return "no attempt has failed"
	}
	return f.Text
}

// tally counts what was tried and what came of it.
type tally struct {
	tried, succeeded int
	failures         []string
}

func (c *tally) count(err error, format string, args ...any) {
	c.tried++
	if err == nil {
		c.succeeded++
		return
	}
	c.failures = append(c.failures, fmt.Sprintf(format, args...)+": "+err.Error())
}

// tell logs the line of a table, and fails the test if anything was lost.
func (c *tally) report(t *testing.T, what, note string) {
	t.Helper()
	t.Logf("%-48s tried %4d  survived %4d  lost %d  %s", what, c.tried, c.succeeded, len(c.failures), note)
	for _, lost := range c.failures {
		t.Errorf("%s: %s", what, lost)
	}
}

// badLines are what cables do to packets. Seeds select which ones. Of ten, three or
// two packets in a row exactly one is lost each way, so that at most four, five or
// six requests in a row get no answer; NAT-PMP and PCP send fifteen for each
// attempt. With six seeds, the last mapping was granted 19 s after the one before,
// of the two minutes that it may take.
var badLines = []struct {
	name string
	line lab.Line
}{
	{"loss 10 %", lab.Line{OneIn: 10}},
	{"loss 30 %", lab.Line{OneIn: 3}},
	{"loss 50 %", lab.Line{OneIn: 2}},
	{"duplication", lab.Line{Duplicate: 0.5}},
	{"reordering", lab.Line{Reorder: 0.3, Jitter: 10 * time.Millisecond}},
	{"delay", lab.Line{Delay: 150 * time.Millisecond, Jitter: 100 * time.Millisecond}},
}

// Over every bad line a mapping is granted, and taken away.
func TestFaultLine(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			for _, bad := range badLines {
				lab.Scenario(t, "fault: "+bad.name+", "+backend)
			}
			testLines(t, backend)
		})
	}
}

// lineLease is longer than it takes to close a mapping over the worst line.
const lineLease = 30 * time.Second

func testLines(t *testing.T, backend string) {
	seedValue := seed(t)
	var all []*cabledClient
	if backend == "upnp" { // a router is too slow to be searched for by many
		for range badLines {
			all = append(all, newCabledClients(t, lab.Home(t, lab.Router{}), 1)...)
		}
	} else {
		all = newCabledClients(t, lab.Home(t, lab.Router{}), len(badLines))
	}
	mappings, echoes, enables := make([]*mapping, len(all)), make([]lab.Echo, len(all)), make([]int, len(all))
	for i, l := range all {
		line := badLines[i].line
		line.Seed = seedValue
		l.cable.Set(line)
		echoes[i] = l.host.Echo(t, "udp", fmt.Sprintf(":%d", firstPort+i))
		f := l.forwarder(config{Protocols: []string{backend}, Lifetime: lineLease, DiscoveryTimeout: maxWait / 2, RequestTimeout: maxWait})
		enables[i] = f.beginEnable(udp(echoes[i].Addr.Port()), background) // however many tries it takes
		mappings[i] = &mapping{f: f}
	}
	for i, l := range all {
		m, err := mappings[i].f.toMapping(l.await(enables[i]))
		if err != nil {
			t.Fatal(err)
		}
		mappings[i] = m
	}
	for i, l := range all {
		l.checkGranted(badLines[i].name, backend, mappings[i], echoes[i])
	}
	for i, l := range all {
		line := badLines[i].line
		line.Seed = seedValue + 1
		l.cable.Set(line)
		enables[i] = l.begin(call{Op: "close mapping", Mapping: mappings[i].n})
	}
	for i, l := range all {
		l.checkDeleted(badLines[i].name, l.await(enables[i]), echoes[i])
		l.cable.Set(lab.Line{})
		mappings[i].f.close()
		l.waitForGoroutines(l.idleGoroutines)
	}
}

// carries wants the mapping to be granted over the bad line, and bytes to arrive
// over a good one: what becomes of them on a bad one is not the router's doing.
// Where every second packet is lost each way, no exchange by TCP ends in time:
// there it must be told, and the mapping comes when the line is good.
func (l *cabledClient) checkGranted(name, backend string, m *mapping, echo lab.Echo) {
	l.t.Helper()
	within := 2 * time.Minute
	hopeless := name == "loss 50 %" && backend == "upnp"
	if hopeless {
		waitUntil(l.t, within, name+": neither granted nor told", func() bool {
			s := m.fetchState()
			return s.External.IsValid() || s.Failure != nil
		})
	} else {
		took := waitUntil(l.t, within, name+": it is not granted", func() bool { return m.fetchState().External.IsValid() })
		l.t.Logf("%s: granted %v after the one before", name, took.Round(time.Millisecond))
	}
	l.cable.Set(lab.Line{})
	waitUntil(l.t, within, name+": it is not granted, over a good line", func() bool { return m.fetchState().External.IsValid() })
	waitReachable(l.t, l.home, echo, m.External, within)
}

// goesAway wants a mapping to go by being closed, or else, where that is told, by
// the end of its lifetime.
func (l *cabledClient) checkDeleted(name string, closed result, echo lab.Echo) {
	l.t.Helper()
	rules := func() int { return len(rulesForHost(l.t, l.home, l.host, echo.Addr.Port())) }
	if closed.Failure == nil {
		l.t.Logf("%s: closed in %v", name, closed.Took.Round(time.Millisecond))
		if n := rules(); n > 0 {
			l.t.Errorf("%s: closed without an error, and it is still there", name)
		}
		return
	}
	l.t.Logf("%s: left to its lifetime after %v: %v", name, closed.Took, closed.Failure)
	waitUntil(l.t, lineLease+maxWait, name+": it outlives its lifetime", func() bool { return rules() == 0 })
}

// A mapping is closed while the answer that grants it is still on its way: it
// must go all the same, or else be said to be left.
func TestFaultCloseUnanswered(t *testing.T) {
	t.Parallel()
	for backend, delay := range map[string]time.Duration{
		"natpmp": 1500 * time.Millisecond,
		"pcp":    400 * time.Millisecond, // or refusals of an option come too late
		"upnp":   800 * time.Millisecond, // several times
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "fault: closed before the answer that grants it is here, "+backend)
			home := lab.Home(t, lab.Router{})
			l := newCabledClients(t, home, 1)[0]
			f := l.forwarder(config{Protocols: []string{backend}, Lifetime: time.Hour})
			f.externalIP() // the gateway is known
			l.cable.Set(lab.Line{Delay: delay})
			m := f.enable(udp(firstPort), background)
			waitUntil(t, maxWait, "no entry", func() bool { return len(requestedRules(home.Rules(t))) > 0 })
			if m.fetchState().External.IsValid() {
				t.Log("the answer was faster than the look at the router")
			}
			got := l.try(call{Op: "close mapping", Mapping: m.n})
			t.Logf("Close took %v and said: %v", got.Took, got.Failure.err())
			deleted := eventually(5*time.Second, func() bool { return len(requestedRules(home.Rules(t))) == 0 })
			if got.Failure == nil && !deleted {
				t.Errorf("Close said that all is well, and the entry stays for its lifetime of an hour: %q", home.Rules(t))
			}
		})
	}
}

// Many callers in one process, some of them with the same port: all are granted,
// or told why not, and nothing stays.
func TestFaultMany(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "fault: 200 callers at once, "+backend)
			testMany(t, lab.Home(t, lab.Router{}), backend)
		})
	}
}

// manyLease is how long what cannot be closed may stay.
const manyLease = 30 * time.Second

func testMany(t *testing.T, home *lab.HomeNet, backend string) {
	a := start(t, home.Lan)
	idleGoroutines := a.resourceUse("goroutines")
	f := a.forwarder(config{Protocols: []string{backend}, Lifetime: manyLease})
	const callers, ports = 200, 10
	var ids []int
	for i := range callers {
		ids = append(ids, f.beginEnable(udp(firstPort+uint16(i)%ports), background))
	}
	mappings := awaitGrants(f, ids, "callers by "+backend)
	wantRequestedRules(t, home, ports)
	for i := range ports {
		echo := home.Lan.Echo(t, "udp", fmt.Sprintf(":%d", firstPort+i))
		waitReachable(t, home, echo, externalAddr(home, echo.Addr.Port()), maxWait)
	}
	if remaining := closeAll(f, mappings); remaining > 0 {
		t.Errorf("%d mappings are left to their lifetime", remaining)
	}
	waitRequestedRulesGone(t, home, 0)
	f.close()
	a.waitForGoroutines(idleGoroutines)
}

// granted waits until all calls have what they want.
func awaitGrants(f *remoteForwarder, ids []int, what string) (mappings []*mapping) {
	f.t.Helper()
	var c tally
	for i, id := range ids {
		m, err := f.toMapping(f.await(id))
		if err == nil && !eventually(maxWait, func() bool { return m.fetchState().External.IsValid() }) {
			err = m.Failure.err()
		}
		c.count(err, "call %d", i)
		if err == nil {
			mappings = append(mappings, m)
		}
	}
	c.report(f.t, what, "")
	return mappings
}

// wantOurs is wantRules of the ports that were asked for.
func wantRequestedRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if rules := requestedRules(listRules(t, home)); len(rules) != want {
		t.Errorf("the router has %d entries of ours, want %d: %q", len(rules), want, rules)
	}
}

// closeAll closes mappings of one agent at once, and returns how many the router did
// not delete, because it takes them for those of another program.
func closeAll(f *remoteForwarder, mappings []*mapping) (remaining int) {
	f.t.Helper()
	var ids []int
	for _, m := range mappings {
		ids = append(ids, f.begin(call{Op: "close mapping", Mapping: m.n}))
	}
	for _, id := range ids {
		if got := f.await(id); got.Failure != nil {
			f.t.Logf("left to its lifetime: %v", got.Failure)
			remaining++
		}
	}
	return remaining
}

// noneOfOurs wants nothing to be there any more but what was left to its lifetime,
// and that no longer.
func waitRequestedRulesGone(t *testing.T, home *lab.HomeNet, remaining int) {
	t.Helper()
	if n := len(requestedRules(listRules(t, home))); n > remaining {
		t.Errorf("%d entries are there, and %d were left", n, remaining)
	}
	if !eventually(manyLease+maxWait, func() bool { return len(requestedRules(listRules(t, home))) == 0 }) {
		t.Errorf("entries outlive their lifetime: %q", requestedRules(listRules(t, home)))
	}
}

// Processes of two hosts want ports of their own, all at once, and one that all
// want: to the processes of a host that is one entry, and the other host gets
// another external port, or is told.
func TestFaultProcesses(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "fault: eight processes at once, "+backend)
			home := lab.Home(t, lab.Router{})
			testProcesses(t, home, backend)
		})
	}
}

func testProcesses(t *testing.T, home *lab.HomeNet, backend string) {
	const processes, each = 8, 1
	hosts := []*lab.Host{home.Lan, home.Join("second", "192.168.77.3/24")}
	echoes := map[*lab.Host]lab.Echo{}
	for _, host := range hosts {
		echoes[host] = host.Echo(t, "udp", fmt.Sprintf(":%d", firstPort))
	}
	all := make([]*clientProcess, processes)
	for i := range all {
		p := &clientProcess{agent: start(t, hosts[i%len(hosts)]), host: hosts[i%len(hosts)]}
		p.idleGoroutines = p.resourceUse("goroutines")
		conf := config{Protocols: []string{backend}, Lifetime: manyLease}
		if backend == "upnp" { // many that search at once keep this router from all of them
			conf.UPnPURL = rootDescription(home)
		}
		p.f = p.forwarder(conf)
		all[i] = p
	}
	for i, p := range all {
		p.beginEnableUDP(firstPort) // what all want
		for j := range each {
			p.beginEnableUDP(firstPort + 1 + uint16(each*i+j))
		}
	}
	for i, p := range all {
		p.mappings = awaitGrants(p.f, p.ids, fmt.Sprintf("process %d by %s", i, backend))
	}
	for _, p := range all {
		for _, m := range p.mappings {
			echo, ok := echoes[p.host], m.Internal.Port() == firstPort
			if !ok {
				echo = p.host.Echo(t, "udp", fmt.Sprintf(":%d", m.Internal.Port()))
			}
			waitReachable(t, home, echo, m.External, maxWait)
		}
	}
	remaining := 0
	for _, p := range all { // one after another, as another's Close may take what both have
		unclosed := closeAll(p.f, p.mappings)
		remaining += unclosed
		if got := p.f.try(call{Op: "close", Forwarder: p.f.n}); got.Failure != nil && unclosed == 0 {
			t.Errorf("close: %v", got.Failure) // else it tells what remains
		}
		p.waitForGoroutines(p.idleGoroutines)
	}
	waitRequestedRulesGone(t, home, remaining)
}

// process is one of several.
type clientProcess struct {
	*agent
	host           *lab.Host
	f              *remoteForwarder
	idleGoroutines int
	ids            []int
	mappings       []*mapping
}

func (p *clientProcess) beginEnableUDP(port uint16) {
	p.ids = append(p.ids, p.f.beginEnable(udp(port), background))
}
