package labtest

import (
	"fmt"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

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
	calm := a.vital("goroutines")
	f := a.forwarder(config{Order: []string{backend}, Lifetime: manyLease})
	const callers, ports = 200, 10
	var ids []int
	for i := range callers {
		ids = append(ids, f.beginEnable(udp(firstPort+uint16(i)%ports), background))
	}
	held := granted(f, ids, "callers by "+backend)
	wantOurs(t, home, ports)
	for i := range ports {
		echo := home.Lan.Echo(t, "udp", fmt.Sprintf(":%d", firstPort+i))
		comes(t, home, echo, at(home, echo.Addr.Port()), patience)
	}
	if left := closeAll(f, held); left > 0 {
		t.Errorf("%d mappings are left to their lifetime", left)
	}
	noneOfOurs(t, home, 0)
	f.close()
	a.quiesces(calm)
}

// granted waits until all calls have what they want.
func granted(f *remote, ids []int, what string) (held []*mapping) {
	f.t.Helper()
	var c tally
	for i, id := range ids {
		m, err := f.enabled(f.await(id))
		if err == nil && !eventually(patience, func() bool { return m.now().External.IsValid() }) {
			err = m.Failure.err()
		}
		c.count(err, "call %d", i)
		if err == nil {
			held = append(held, m)
		}
	}
	c.tell(f.t, what, "")
	return held
}

// wantOurs is wantRules of the ports that were asked for.
func wantOurs(t *testing.T, home *lab.HomeNet, want int) {
	t.Helper()
	if rules := ours(entries(t, home)); len(rules) != want {
		t.Errorf("the router has %d entries of ours, want %d: %q", len(rules), want, rules)
	}
}

// closeAll closes mappings of one agent at once, and returns how many the router did
// not delete, because it takes them for those of another program.
func closeAll(f *remote, held []*mapping) (left int) {
	f.t.Helper()
	var ids []int
	for _, m := range held {
		ids = append(ids, f.begin(call{Op: "close mapping", Mapping: m.n}))
	}
	for _, id := range ids {
		if got := f.await(id); got.Failure != nil {
			f.t.Logf("left to its lifetime: %v", got.Failure)
			left++
		}
	}
	return left
}

// noneOfOurs wants nothing to be there any more but what was left to its lifetime,
// and that no longer.
func noneOfOurs(t *testing.T, home *lab.HomeNet, left int) {
	t.Helper()
	if n := len(ours(entries(t, home))); n > left {
		t.Errorf("%d entries are there, and %d were left", n, left)
	}
	if !eventually(manyLease+patience, func() bool { return len(ours(entries(t, home))) == 0 }) {
		t.Errorf("entries outlive their lifetime: %q", ours(entries(t, home)))
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
	all := make([]*process, processes)
	for i := range all {
		p := &process{agent: start(t, hosts[i%len(hosts)]), host: hosts[i%len(hosts)]}
		p.calm = p.vital("goroutines")
		conf := config{Order: []string{backend}, Lifetime: manyLease}
		if backend == "upnp" { // many that search at once keep this router from all of them
			conf.IGD = rootDescription(home)
		}
		p.f = p.forwarder(conf)
		all[i] = p
	}
	for i, p := range all {
		p.begins(firstPort) // what all want
		for j := range each {
			p.begins(firstPort + 1 + uint16(each*i+j))
		}
	}
	for i, p := range all {
		p.held = granted(p.f, p.ids, fmt.Sprintf("process %d by %s", i, backend))
	}
	for _, p := range all {
		for _, m := range p.held {
			echo, ok := echoes[p.host], m.Internal.Port() == firstPort
			if !ok {
				echo = p.host.Echo(t, "udp", fmt.Sprintf(":%d", m.Internal.Port()))
			}
			comes(t, home, echo, m.External, patience)
		}
	}
	left := 0
	for _, p := range all { // one after another, as another's Close may take what both have
		remains := closeAll(p.f, p.held)
		left += remains
		if got := p.f.try(call{Op: "close", Forwarder: p.f.n}); got.Failure != nil && remains == 0 {
			t.Errorf("close: %v", got.Failure) // else it tells what remains
		}
		p.quiesces(p.calm)
	}
	noneOfOurs(t, home, left)
}

// process is one of several.
type process struct {
	*agent
	host *lab.Host
	f    *remote
	calm int
	ids  []int
	held []*mapping
}

func (p *process) begins(port uint16) {
	p.ids = append(p.ids, p.f.beginEnable(udp(port), background))
}
