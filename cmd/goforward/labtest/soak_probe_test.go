package labtest

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// probes sends bytes from outside to all targets, all the time.
type probes struct {
	t    *testing.T
	home *lab.HomeNet
	quit chan struct{}
	work sync.WaitGroup
	once sync.Once

	mu             sync.Mutex
	targets        []*probed
	asked, arrived int
}

// probed is where bytes are sent.
type probed struct {
	echo lab.Echo

	mu       sync.Mutex
	external netip.AddrPort
	reached  time.Time // when the last bytes that arrived were sent
}

func (p *probed) set(external netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.external = external
}

func (p *probed) reachedAt() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reached
}

func startProbes(t *testing.T, home *lab.HomeNet) *probes {
	p := &probes{t: t, home: home, quit: make(chan struct{})}
	for i := range probers {
		p.work.Go(func() { p.run(i) })
	}
	t.Cleanup(func() { p.stop() })
	return p
}

// probers is how many probes are under way at once, each to its share.
const probers = 4

func (p *probes) run(share int) {
	tick := time.NewTicker(5 * again)
	defer tick.Stop()
	for {
		p.mu.Lock()
		targets := slices.Clone(p.targets)
		p.mu.Unlock()
		for i, target := range targets {
			if i%probers == share {
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

func (p *probes) probe(target *probed) {
	target.mu.Lock()
	to := target.external
	target.mu.Unlock()
	if !to.IsValid() {
		return
	}
	sent := time.Now()
	ok := answered(p.t, p.home.Wan, target.echo, to)
	p.mu.Lock()
	p.asked++
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

func (p *probes) add(targets []*probed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = append(p.targets, targets...)
}

func (p *probes) remove(targets []*probed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = slices.DeleteFunc(p.targets, func(t *probed) bool { return slices.Contains(targets, t) })
}

// stop ends the probes, and tells how many there were and how many arrived.
func (p *probes) stop() (asked, arrived int) {
	p.once.Do(func() { close(p.quit) })
	p.work.Wait()
	return p.asked, p.arrived
}
