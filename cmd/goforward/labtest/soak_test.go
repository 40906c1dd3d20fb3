package labtest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/internal/testseed"
)

// soakFor returns the duration of the soak test.
func soakFor(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("GOFORWARD_SOAK_FOR")
	if text == "" {
		return 2 * time.Minute
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("GOFORWARD_SOAK_FOR: %v", err)
	}
	return d
}

// TestSoakRestarts kills and restarts the router every twenty seconds, while programs
// keep mappings of every kind, open and close others, and bytes from outside arrive all
// the time. After each restart all mappings are restored. At the end, nothing is left in
// the router or in the programs.
func TestSoakRestarts(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "soak: the router restarts every twenty seconds under load")
	const every = 20 * time.Second
	s := newSoak(t)
	for end := time.Now().Add(soakFor(t)); time.Now().Before(end); {
		s.churn(every)
		s.restart()
	}
	s.end()
}

const (
	soakLease = 2 * time.Minute
	// maxOutage is how long a mapping may be unreachable after a restart, which the
	// router announces.
	maxOutage = 15 * time.Second
	maxExtra  = 4 // mappings of each program that are opened and closed
)

// soakTest is the state of the test. Call its methods from the test's goroutine.
type soakTest struct {
	t            *testing.T
	home         *lab.HomeNet
	programs     []*soakProgram
	rng          *rand.Rand
	port         uint16
	restarts     int
	afterRestart tally         // whether the mappings were restored, at each restart
	closed       tally         // whether closed mappings were deleted
	reported     int           // calls that returned an error
	longest      time.Duration // the longest time to restore a mapping after a restart
	probes       *probes
}

// soakProgram is one program and its mappings.
type soakProgram struct {
	*agent
	f        *remoteForwarder
	backend  string
	baseline map[string]int
	held     []*soakMapping
	extra    []*soakMapping // opened and closed again
}

// soakMapping is a mapping with servers behind it.
type soakMapping struct {
	*mapping
	port    uint16
	network string
	targets []*probeTarget
}

var resources = []string{"goroutines", "files", "heap"}

func newSoak(t *testing.T) *soakTest {
	t.Helper()
	s := &soakTest{
		t: t, home: lab.Home(t, lab.Router{DaemonUptime: true}),
		rng: rand.New(rand.NewPCG(testseed.Of(t), 1)),
	}
	s.probes = startProbes(t, s.home)
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		p := &soakProgram{agent: start(t, s.home.Lan), backend: backend, baseline: map[string]int{}}
		p.warmUp()
		p.f = p.forwarder(config{Protocols: []string{backend}, Lifetime: soakLease})
		for _, network := range []string{"tcp", "udp", "both"} {
			p.held = append(p.held, s.open(p, network))
		}
		s.programs = append(s.programs, p)
	}
	s.waitAllReachable("the start", time.Now())
	return s
}

// warmUp maps a port and closes the mapping once, and then records the resources in use
// as the baseline.
func (p *soakProgram) warmUp() {
	p.t.Helper()
	idleGoroutines := p.resourceUse("goroutines")
	f := p.forwarder(config{Protocols: []string{p.backend}, Lifetime: soakLease})
	m := f.enable(udp(lastPort), background)
	if !eventually(maxWait, func() bool { return m.fetchState().External.IsValid() }) {
		p.t.Fatalf("%s: not granted: %s", p.backend, failureText(m.Failure))
	}
	m.close()
	f.close()
	p.waitForGoroutines(idleGoroutines)
	for _, v := range resources {
		p.baseline[v] = p.resourceUse(v)
	}
}

// listen starts echo servers on a port that was not used before.
func (s *soakTest) listen(network string) *soakMapping {
	s.t.Helper()
	h := &soakMapping{port: firstPort + s.port, network: network}
	s.port = (s.port + 1) % (lastPort - firstPort)
	networks := []string{network}
	if network == "both" {
		networks = []string{"tcp", "udp"}
	}
	for _, n := range networks {
		h.targets = append(h.targets, &probeTarget{echo: s.home.Lan.Echo(s.t, n, fmt.Sprintf(":%d", h.port))})
	}
	return h
}

// open enables a mapping in the background and starts to probe it.
func (s *soakTest) open(p *soakProgram, network string) *soakMapping {
	s.t.Helper()
	h := s.listen(network)
	h.mapping = p.f.enable(option{Name: network, Port: h.port}, background)
	s.probes.add(h.targets)
	return h
}

// churn opens, closes and renews mappings for some time.
func (s *soakTest) churn(during time.Duration) {
	s.t.Helper()
	end := time.After(during)
	for {
		select {
		case <-end:
			return
		case <-time.After(time.Duration(s.rng.IntN(1500)) * time.Millisecond):
			s.step(s.programs[s.rng.IntN(len(s.programs))])
		}
	}
}

// step opens, closes or renews one mapping.
func (s *soakTest) step(p *soakProgram) {
	s.t.Helper()
	p.events = nil // this test does not use them
	switch i := s.rng.IntN(3); {
	case i == 0 && len(p.extra) < maxExtra:
		p.extra = append(p.extra, s.open(p, []string{"tcp", "udp", "both"}[s.rng.IntN(3)]))
	case i == 1 && len(p.extra) > 0:
		n := s.rng.IntN(len(p.extra))
		h := p.extra[n]
		p.extra = slices.Delete(p.extra, n, n+1)
		s.close(p, h)
	case i == 2:
		h := p.held[s.rng.IntN(len(p.held))]
		if got := p.try(call{Op: "refresh", Mapping: h.n}); got.Failure != nil {
			s.reported++
		}
	}
}

// close closes a mapping and checks that the router deletes it, unless Close returns an
// error. A mapping that is not granted yet may be granted during Close, and stay until
// its lifetime ends.
func (s *soakTest) close(p *soakProgram, h *soakMapping) {
	s.t.Helper()
	s.probes.remove(h.targets)
	granted := h.fetchState().External.IsValid()
	got := p.try(call{Op: "close mapping", Mapping: h.n})
	if got.Failure != nil {
		s.reported++
		return
	}
	if !granted {
		return
	}
	var err error
	if rules := rulesForHost(s.t, s.home, s.home.Lan, h.port); len(rules) > 0 {
		err = fmt.Errorf("%w: %q", errStillMapped, rules)
	}
	s.closed.count(err, "port %d by %s", h.port, p.backend)
}

// restart simulates a power cut while each program opens a mapping. All mappings must be
// restored.
func (s *soakTest) restart() {
	s.t.Helper()
	s.restarts++
	opening := map[*soakProgram]*soakMapping{}
	ids := map[*soakProgram]int{}
	for _, p := range s.programs {
		opening[p] = s.listen("udp")
		ids[p] = p.f.beginEnable(udp(opening[p].port))
	}
	s.home.Daemon.Restart(s.t)
	begin := time.Now()
	for _, p := range s.programs {
		m, err := p.f.toMapping(p.await(ids[p]))
		if err != nil {
			s.reported++
			continue
		}
		h := opening[p]
		h.mapping = m
		s.probes.add(h.targets)
		p.extra = append(p.extra, h)
	}
	s.waitAllReachable(fmt.Sprintf("restart %d", s.restarts), begin)
	for _, p := range s.programs {
		for len(p.extra) > maxExtra {
			s.close(p, p.extra[0])
			p.extra = p.extra[1:]
		}
	}
}

// waitAllReachable checks that bytes which were sent after since arrive through all
// mappings.
func (s *soakTest) waitAllReachable(what string, since time.Time) {
	s.t.Helper()
	for _, p := range s.programs {
		for _, h := range slices.Concat(p.held, p.extra) {
			var err error
			if !eventually(maxOutage-min(time.Since(since), maxOutage/2), func() bool { return h.reachableSince(since) }) {
				err = fmt.Errorf("no bytes arrive at %v: %v", h.External, failureText(h.Failure))
			}
			s.afterRestart.count(err, "%s: %s port %d by %s", what, h.network, h.port, p.backend)
			if err == nil {
				s.longest = max(s.longest, h.reachedAt().Sub(since))
			}
		}
	}
	s.t.Logf("%s: all mappings were restored after %v", what, time.Since(since).Round(time.Millisecond))
}

// reachableSince updates the external addresses of the probes, and reports whether bytes
// that were sent after since have arrived.
func (h *soakMapping) reachableSince(since time.Time) bool {
	s := h.fetchState()
	for _, target := range h.targets {
		target.set(s.External)
	}
	return h.reachedAt().After(since)
}

// reachedAt returns the earliest of the times at which the targets were last reached.
func (h *soakMapping) reachedAt() time.Time {
	at := h.targets[0].reachedAt()
	for _, target := range h.targets[1:] {
		if other := target.reachedAt(); other.Before(at) {
			at = other
		}
	}
	return at
}

// end closes all mappings and checks that nothing remains.
func (s *soakTest) end() {
	s.t.Helper()
	for _, p := range s.programs {
		for _, h := range slices.Concat(p.held, p.extra) {
			s.close(p, h)
		}
		p.f.close()
	}
	sent, arrived := s.probes.stop()
	if !eventually(soakLease+maxWait, func() bool { return len(requestedRules(listRules(s.t, s.home))) == 0 }) {
		s.t.Errorf("entries outlive their lifetime: %q", requestedRules(listRules(s.t, s.home)))
	}
	s.afterRestart.report(s.t, fmt.Sprintf("restored at %d restarts", s.restarts), fmt.Sprintf("(after %v at most)", s.longest.Round(time.Millisecond)))
	s.closed.report(s.t, "closed", fmt.Sprintf("(%d calls returned an error)", s.reported))
	s.t.Logf("%d of %d probes arrived", arrived, sent)
	for _, p := range s.programs {
		p.waitForGoroutines(p.baseline["goroutines"])
		for _, v := range resources {
			s.t.Logf("%s: %s: %d at the start, %d at the end", p.backend, v, p.baseline[v], p.resourceUse(v))
		}
		if n := p.resourceUse("files"); n > p.baseline["files"] {
			s.t.Errorf("%s: %d open files at the end, %d at the start", p.backend, n, p.baseline["files"])
		}
		if n := p.resourceUse("heap"); n > p.baseline["heap"]+4<<20 {
			s.t.Errorf("%s: a heap of %d bytes at the end, %d at the start", p.backend, n, p.baseline["heap"])
		}
	}
}

// probes continuously sends bytes from outside to all targets.
type probes struct {
	t    *testing.T
	home *lab.HomeNet
	quit chan struct{}
	wg   sync.WaitGroup
	once sync.Once

	mu            sync.Mutex
	targets       []*probeTarget
	sent, arrived int
}

// probeTarget is an echo server and its external address.
type probeTarget struct {
	echo lab.Echo

	mu       sync.Mutex
	external netip.AddrPort
	reached  time.Time // when the last bytes that arrived were sent
}

func (p *probeTarget) set(external netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.external = external
}

func (p *probeTarget) reachedAt() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reached
}

func startProbes(t *testing.T, home *lab.HomeNet) *probes {
	p := &probes{t: t, home: home, quit: make(chan struct{})}
	for i := range probeWorkers {
		p.wg.Go(func() { p.run(i) })
	}
	t.Cleanup(func() { p.stop() })
	return p
}

// probeWorkers is the number of goroutines that send probes. Each handles a share of the
// targets.
const probeWorkers = 4

func (p *probes) run(share int) {
	tick := time.NewTicker(5 * pollInterval)
	defer tick.Stop()
	for {
		p.mu.Lock()
		targets := slices.Clone(p.targets)
		p.mu.Unlock()
		for i, target := range targets {
			if i%probeWorkers == share {
				p.probe(target)
			}
		}
		select {
		case <-tick.C:
		case <-p.quit:
			return
		}
	}
}

func (p *probes) probe(target *probeTarget) {
	target.mu.Lock()
	to := target.external
	target.mu.Unlock()
	if !to.IsValid() {
		return
	}
	sent := time.Now()
	ok := isReachable(p.t, p.home.Wan, target.echo, to)
	p.mu.Lock()
	p.sent++
	if ok {
		p.arrived++
	}
	p.mu.Unlock()
	if ok {
		target.mu.Lock()
		target.reached = sent
		target.mu.Unlock()
	}
}

func (p *probes) add(targets []*probeTarget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = append(p.targets, targets...)
}

func (p *probes) remove(targets []*probeTarget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = slices.DeleteFunc(p.targets, func(t *probeTarget) bool { return slices.Contains(targets, t) })
}

// stop stops the probes, and returns how many were sent and how many arrived.
func (p *probes) stop() (sent, arrived int) {
	p.once.Do(func() { close(p.quit) })
	p.wg.Wait()
	return p.sent, p.arrived
}
