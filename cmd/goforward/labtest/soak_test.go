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
)

// soakFor is how long the soak takes.
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

// The router is killed and starts anew every twenty seconds, while programs hold
// mappings of every kind, open and close others, and bytes come from outside all
// the time: after each restart all that is held is back, and at the end nothing
// is left over, in the router or in the programs.
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
	// backWithin is how long a mapping may be away after a restart: the router
	// announces it.
	maxOutage = 15 * time.Second
	maxExtra  = 4 // mappings that come and go, for each program
)

// soak is the state of the test. Its methods are the test's goroutine's.
type soakTest struct {
	t            *testing.T
	home         *lab.HomeNet
	programs     []*soakProgram
	rng          *rand.Rand
	port         uint16
	restarts     int
	afterRestart tally         // what was held, at each restart
	closed       tally         // what was closed
	reported     int           // calls that failed, and said so
	longest      time.Duration // that anything was away after a restart
	probes       *probes
}

// soaked is one program, and what it holds.
type soakProgram struct {
	*agent
	f        *remoteForwarder
	backend  string
	baseline map[string]int
	held     []*soakMapping
	extra    []*soakMapping // opened and closed again
}

// holding is a mapping with servers behind it.
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
		rng: rand.New(rand.NewPCG(seed(t), 1)),
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

// warmUp has the program do all once, before what it has is counted.
func (p *soakProgram) warmUp() {
	p.t.Helper()
	calm := p.resourceUse("goroutines")
	f := p.forwarder(config{Protocols: []string{p.backend}, Lifetime: soakLease})
	m := f.enable(udp(lastPort), background)
	if !eventually(maxWait, func() bool { return m.fetchState().External.IsValid() }) {
		p.t.Fatalf("%s: not granted: %s", p.backend, failureText(m.Failure))
	}
	m.close()
	f.close()
	p.waitForGoroutines(calm)
	for _, v := range resources {
		p.baseline[v] = p.resourceUse(v)
	}
}

// listen makes servers for a port that nobody has had.
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

func (s *soakTest) open(p *soakProgram, network string) *soakMapping {
	s.t.Helper()
	h := s.listen(network)
	h.mapping = p.f.enable(option{Name: network, Port: h.port}, background)
	s.probes.add(h.targets)
	return h
}

// churn opens and closes for a while.
func (s *soakTest) churn(during time.Duration) {
	s.t.Helper()
	over := time.After(during)
	for {
		select {
		case <-over:
			return
		case <-time.After(time.Duration(s.rng.IntN(1500)) * time.Millisecond):
			s.step(s.programs[s.rng.IntN(len(s.programs))])
		}
	}
}

// step opens, closes or renews something.
func (s *soakTest) step(p *soakProgram) {
	s.t.Helper()
	p.events = nil // nobody reads them
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

// close closes, and wants it to be gone if nothing else is said. What is not
// granted yet may just be so, and stay for its lifetime.
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

// restart is a power cut while each program opens and closes something, and all
// that is held must come back.
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

// await wants bytes to arrive that were sent after a time, at all that is held.
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
	s.t.Logf("%s: all was back after %v", what, time.Since(since).Round(time.Millisecond))
}

// isBack looks where the world is to send to, and whether what was sent since
// has arrived.
func (h *soakMapping) reachableSince(since time.Time) bool {
	s := h.fetchState()
	for _, target := range h.targets {
		target.set(s.External)
	}
	return h.reachedAt().After(since)
}

// backAt is when the last of the targets was reached last.
func (h *soakMapping) reachedAt() time.Time {
	at := h.targets[0].reachedAt()
	for _, target := range h.targets[1:] {
		if other := target.reachedAt(); other.Before(at) {
			at = other
		}
	}
	return at
}

// end closes everything, and wants nothing to be left over.
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
	s.afterRestart.report(s.t, fmt.Sprintf("held at %d restarts", s.restarts), fmt.Sprintf("(back after %v at most)", s.longest.Round(time.Millisecond)))
	s.closed.report(s.t, "closed", fmt.Sprintf("(%d calls failed, and told)", s.reported))
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

// probes sends bytes from outside to all targets, all the time.
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

// probed is where bytes are sent.
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

// probers is how many probes are under way at once, each to its share.
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

// stop ends the probes, and tells how many there were and how many arrived.
func (p *probes) stop() (sent, arrived int) {
	p.once.Do(func() { close(p.quit) })
	p.wg.Wait()
	return p.sent, p.arrived
}
