package labtest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/internal/testseed"
)

// allFaults selects the long form of the tests, which tries every step. The short form
// tries some of them.
var allFaults = os.Getenv("GOFORWARD_FAULTS") == "all"

// resourceUse returns a number that shows whether a process leaks: goroutines, open
// files, or bytes of the heap.
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

// resourceUse fetches the number from the agent.
func (a *agent) resourceUse(op string) int {
	a.t.Helper()
	return a.do(call{Op: op}).Count
}

// waitForGoroutines waits until the agent has no more goroutines than limit.
func (a *agent) waitForGoroutines(limit int) {
	a.t.Helper()
	now := 0
	waitUntil(a.t, maxWait, "too many goroutines remain", func() bool {
		now = a.resourceUse("goroutines")
		return now <= limit
	})
}

// eventually polls until done returns true or the time is over, and reports which. It
// polls less often than waitUntil, because the caller starts a process for each
// inspection of a router.
func eventually(within time.Duration, done func() bool) bool {
	timeout := time.After(within)
	tick := time.NewTicker(5 * pollInterval)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-timeout:
			return false
		}
	}
	return true
}

// cabledClient is a host of a home with its own cable and agent. So one router serves
// many clients whose calls fail at different moments.
type cabledClient struct {
	*agent
	home           *lab.HomeNet
	host           *lab.Host
	cable          *lab.Cable
	idleGoroutines int // the number of goroutines of the idle agent
}

// newCabledClients adds n clients to the home.
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

// newCabledHosts adds n clients without agents.
func newCabledHosts(t *testing.T, home *lab.HomeNet, n int) []*cabledClient {
	t.Helper()
	// The kernel puts each segment into a frame of its own, so that there are as many
	// steps as on a real network.
	home.Router.Exec(t, "ip", "link", "set", "lan0", "gso_max_segs", "1")
	var all []*cabledClient
	for i := range n {
		host, cable := home.JoinByCable(fmt.Sprintf("lane%d", i), fmt.Sprintf("192.168.77.%d/24", 100+i))
		host.Exec(t, "ip", "link", "set", "eth0", "gso_max_segs", "1")
		all = append(all, &cabledClient{home: home, host: host, cable: cable})
	}
	return all
}

// listRules returns the router's port forwardings, as HomeNet.Rules does. The program
// that lists them may hang in the kernel, so it is started again after a timeout.
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

// rulesForHost returns the router's entries that forward to the host. If port is not 0,
// it returns only those that forward to this port.
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

// rootDescriptionURL returns the URL of the router's device description. With this URL, a
// client need not search.
func rootDescriptionURL(home *lab.HomeNet) string {
	return fmt.Sprintf("http://%s:5000/rootDesc.xml", home.Gateway)
}

// internalPort returns the port to which an entry forwards.
func internalPort(rule string) int {
	_, port, _ := strings.Cut(rule[strings.LastIndex(rule, " ")+1:], ":")
	n, _ := strconv.Atoi(port)
	return n
}

// failureText returns the text of a mapping's last error.
func failureText(f *failure) string {
	if f == nil {
		return "no attempt has failed"
	}
	return f.Text
}

// tally counts attempts and their outcomes.
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

// report logs a line with the counts, and fails the test if an attempt failed.
func (c *tally) report(t *testing.T, what, note string) {
	t.Helper()
	t.Logf("%-48s tried %4d  succeeded %4d  failed %d  %s", what, c.tried, c.succeeded, len(c.failures), note)
	for _, lost := range c.failures {
		t.Errorf("%s: %s", what, lost)
	}
}

// badLines are cables with faults. Seeds select the packets. If 10 %, 30 % or 50 % of the
// packets are lost, exactly one of ten, three or two packets in a row is lost in each direction. So at
// most four, five or six requests in a row get no reply; NAT-PMP and PCP send fifteen
// requests for each attempt. With six seeds, the last mapping was granted 19 s after the
// previous one. The limit is two minutes.
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

// TestFaultBadLine checks that a mapping is granted and deleted over every bad line.
func TestFaultBadLine(t *testing.T) {
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
	seedValue := testseed.Of(t)
	var all []*cabledClient
	if backend == "upnp" { // the router is too slow for searches of many clients
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
		enables[i] = f.beginEnable(udp(echoes[i].Addr.Port()), background) // in the background, so that Enable makes as many attempts as necessary
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

// checkGranted checks that the mapping is granted over the bad line and that bytes arrive
// over a good line. Over a bad line, the loss of bytes would not be caused by the router.
// If half of the packets are lost in each direction, no TCP exchange completes in time.
// Then an error must be reported, and the mapping must be granted when the line is good.
func (l *cabledClient) checkGranted(name, backend string, m *mapping, echo lab.Echo) {
	l.t.Helper()
	within := 2 * time.Minute
	expectFailure := name == "loss 50 %" && backend == "upnp"
	if expectFailure {
		waitUntil(l.t, within, name+": neither granted nor an error reported", func() bool {
			s := m.fetchState()
			return s.External.IsValid() || s.Failure != nil
		})
	} else {
		took := waitUntil(l.t, within, name+": not granted", func() bool { return m.fetchState().External.IsValid() })
		l.t.Logf("%s: granted %v after the previous one", name, took.Round(time.Millisecond))
	}
	l.cable.Set(lab.Line{})
	waitUntil(l.t, within, name+": not granted over a good line", func() bool { return m.fetchState().External.IsValid() })
	waitReachable(l.t, l.home, echo, m.External, within)
}

// checkDeleted checks that a closed mapping is deleted. If Close returned an error, it
// must be deleted when its lifetime ends.
func (l *cabledClient) checkDeleted(name string, closed result, echo lab.Echo) {
	l.t.Helper()
	rules := func() int { return len(rulesForHost(l.t, l.home, l.host, echo.Addr.Port())) }
	if closed.Failure == nil {
		l.t.Logf("%s: closed in %v", name, closed.Took.Round(time.Millisecond))
		if n := rules(); n > 0 {
			l.t.Errorf("%s: closed without an error, but the router still has the entry", name)
		}
		return
	}
	l.t.Logf("%s: Close failed after %v, the entry stays until its lifetime ends: %v", name, closed.Took, closed.Failure)
	waitUntil(l.t, lineLease+maxWait, name+": the entry outlives its lifetime", func() bool { return rules() == 0 })
}

// TestFaultCloseUnanswered checks a mapping that is closed while the response that grants
// it is in flight. The mapping must still be deleted, or else Close must return an error.
func TestFaultCloseUnanswered(t *testing.T) {
	t.Parallel()
	for backend, delay := range map[string]time.Duration{
		"natpmp": 1500 * time.Millisecond,
		"pcp":    400 * time.Millisecond, // with a longer delay, refusals of an option arrive too late
		"upnp":   800 * time.Millisecond, // the delay applies several times
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "fault: closed before the answer that grants it is here, "+backend)
			home := lab.Home(t, lab.Router{})
			l := newCabledClients(t, home, 1)[0]
			f := l.forwarder(config{Protocols: []string{backend}, Lifetime: time.Hour})
			f.externalIP() // this makes the client find the gateway
			l.cable.Set(lab.Line{Delay: delay})
			m := f.enable(udp(firstPort), background)
			waitUntil(t, maxWait, "the router creates no entry", func() bool { return len(requestedRules(home.Rules(t))) > 0 })
			if m.fetchState().External.IsValid() {
				t.Log("the response arrived before the test inspected the router")
			}
			got := l.try(call{Op: "close mapping", Mapping: m.n})
			t.Logf("Close returned after %v: %v", got.Took, got.Failure.err())
			deleted := eventually(5*time.Second, func() bool { return len(requestedRules(home.Rules(t))) == 0 })
			if got.Failure == nil && !deleted {
				t.Errorf("Close returned nil, but the entry stays for its lifetime of an hour: %q", home.Rules(t))
			}
		})
	}
}

// TestFaultMany checks many callers in one process, some of them with the same port. Each
// call is granted or returns an error, and no mapping remains.
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

// manyLease is how long a mapping that cannot be closed may stay.
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
		t.Errorf("%d mappings could not be closed", remaining)
	}
	waitRequestedRulesExpire(t, home, 0)
	f.close()
	a.waitForGoroutines(idleGoroutines)
}

// awaitGrants waits until all calls are granted. It reports those that are not.
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

// wantRequestedRules checks that the router has this many entries of the requested ports.
func wantRequestedRules(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if rules := requestedRules(listRules(t, home)); len(rules) != want {
		t.Errorf("the router has %d entries of requested ports, want %d: %q", len(rules), want, rules)
	}
}

// closeAll closes mappings of one agent in parallel. It returns the number of mappings
// that the router did not delete because it attributes them to another program.
func closeAll(f *remoteForwarder, mappings []*mapping) (remaining int) {
	f.t.Helper()
	var ids []int
	for _, m := range mappings {
		ids = append(ids, f.begin(call{Op: "close mapping", Mapping: m.n}))
	}
	for _, id := range ids {
		if got := f.await(id); got.Failure != nil {
			f.t.Logf("not closed: %v", got.Failure)
			remaining++
		}
	}
	return remaining
}

// waitRequestedRulesExpire checks that the router has at most as many entries as could not
// be deleted, and waits until their lifetimes end.
func waitRequestedRulesExpire(t *testing.T, home *lab.HomeNet, remaining int) {
	t.Helper()
	if n := len(requestedRules(listRules(t, home))); n > remaining {
		t.Errorf("the router has %d entries, but only %d could not be closed", n, remaining)
	}
	if !eventually(manyLease+maxWait, func() bool { return len(requestedRules(listRules(t, home))) == 0 }) {
		t.Errorf("entries outlive their lifetime: %q", requestedRules(listRules(t, home)))
	}
}

// TestFaultProcesses checks processes on two hosts that request ports at the same time:
// one port for each process, and one port that all processes request. For the processes
// of one host, the common port is one entry. The other host gets another external port,
// or an error.
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
		if backend == "upnp" { // many clients that search at once keep this router from replying to any
			conf.UPnPURL = rootDescriptionURL(home)
		}
		p.f = p.forwarder(conf)
		all[i] = p
	}
	for i, p := range all {
		p.beginEnableUDP(firstPort) // the common port
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
	for _, p := range all { // one after another, because a Close of one process may delete the common entry
		unclosed := closeAll(p.f, p.mappings)
		remaining += unclosed
		if got := p.f.try(call{Op: "close", Forwarder: p.f.n}); got.Failure != nil && unclosed == 0 {
			t.Errorf("close: %v", got.Failure) // otherwise the error names what remains
		}
		p.waitForGoroutines(p.idleGoroutines)
	}
	waitRequestedRulesExpire(t, home, remaining)
}

// clientProcess is one of several agents and its mappings.
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
