package forward_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

const day = 24 * time.Hour

// simulation is a Forwarder over a gateway that misbehaves, for a while.
type simulation struct {
	count    int
	lasts    time.Duration
	loss     float64       // of calls
	epoch    bool          // the gateway's answers tell of a restart
	every    time.Duration // between faults, in the mean
	outage   time.Duration // the longest
	mixed    bool          // all kinds of mappings, not one
	lifetime time.Duration // of most
	keeps    bool          // run returns all calls
}

// Weeks of restarts, outages and lost calls, and the mappings are always there
// as soon as the gateway lets them. GOFORWARD_SOAK=1 is for ten thousand mappings
// and a month.
func TestSimulation(t *testing.T) {
	many := simulation{count: 10000, lasts: 2 * day, loss: 0.1, epoch: true, every: 30 * time.Hour, outage: 2 * time.Hour, lifetime: 24 * time.Hour}
	if os.Getenv("GOFORWARD_SOAK") == "1" {
		many.lasts, many.loss, many.every, many.outage, many.lifetime = 30*day, 0.3, 12*time.Hour, 6*time.Hour, 2*time.Hour
	}
	for name, s := range map[string]simulation{
		"few for a month": {count: 200, lasts: 30 * day, loss: 0.3, every: 40 * time.Hour, outage: 5 * time.Hour, lifetime: 12 * time.Hour, mixed: true},
		"with epochs":     {count: 50, lasts: 5 * day, loss: 0.1, epoch: true, every: 20 * time.Hour, outage: 3 * time.Hour, lifetime: 2 * time.Hour, mixed: true},
		"many":            many,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { s.run(t, simSeed(t)) })
		})
	}
}

// simSeed is what chance is drawn from. It is the same in every run, so that a test
// does not fail by chance. GOFORWARD_SEED sets another one, or with "random" a new
// one.
func simSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(1)
	switch text := os.Getenv("GOFORWARD_SEED"); text {
	case "":
	case "random":
		seed = rand.Uint64()
	default:
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("GOFORWARD_SEED=%d repeats it", seed)
		}
	})
	return seed
}

// options of the i-th mapping.
func (s simulation) options(i int) []forward.Option {
	port := uint16(1024 + i)
	if s.mixed {
		switch i % 40 {
		case 1:
			return []forward.Option{forward.Both(port)}
		case 2:
			return []forward.Option{forward.UDP(port), forward.Lifetime(forward.Forever)}
		case 3:
			return []forward.Option{forward.TCP(port), forward.Lifetime(time.Hour)}
		case 4:
			return []forward.Option{forward.TCP(port), forward.Lifetime(7 * day)}
		case 5:
			return []forward.Option{forward.UDP(port - 1)} // beside the one before
		case 6:
			return []forward.Option{forward.UDP(port), forward.SamePort(), forward.Exact()}
		}
		if i == 7 {
			return []forward.Option{forward.TCP(port), forward.Lifetime(20 * time.Minute)}
		}
	}
	return []forward.Option{forward.TCP(port)}
}

// turn is what all the others' calls may take before one's own, twice over.
func (s simulation) turn() time.Duration {
	call := slowest + time.Duration(s.loss*float64(noReply))
	return noReply + time.Duration(2*float64(s.count)*float64(call)/(1-s.loss)/forward.MaxWorkers)
}

// simRun is a simulation under way.
type simRun struct {
	simulation
	t         *testing.T
	rng       *rand.Rand
	gateway   *simGateway
	chronicle *chronicle
	forwarder *forward.Forwarder
	mappings  []*forward.Mapping
	idle      int // goroutines before the first mapping
}

// run returns what the gateway was asked, if the simulation keeps it.
func (s simulation) run(t *testing.T, seed uint64) []simCall {
	r := simRun{
		simulation: s, t: t, rng: rand.New(rand.NewPCG(seed, 1)),
		gateway: newSimGateway(seed), chronicle: newChronicle(), idle: runtime.NumGoroutine(),
	}
	r.gateway.loss, r.gateway.epoch, r.gateway.absences.turn = s.loss, s.epoch, s.turn()
	r.gateway.keeps = s.keeps
	var err error
	r.forwarder, err = forward.New(&forward.Config{
		Backends: []backends.Backend{r.gateway}, Lifetime: s.lifetime, OnEvent: r.chronicle.record,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.forwarder.SetJitter(seededJitter(seed))
	r.watchBursts()
	begun := time.Now()
	r.enable()
	for end := begun.Add(s.lasts); time.Now().Before(end) && !t.Failed(); {
		r.fault()
		r.pass(min(time.Duration(r.rng.ExpFloat64()*float64(s.every)), time.Until(end)))
	}
	days := float64(time.Since(begun)) / float64(day)
	calls := r.gateway.calls
	r.heal()
	r.end()
	t.Logf("%d calls, %.1f a day for each mapping; events %v; longest absences %v; turn %v",
		calls, float64(calls)/float64(s.count)/days, r.chronicle.count, r.gateway.absences.longest, s.turn())
	return r.gateway.asked
}

// pass lets time pass, and looks every hour. Also where d is 0, all goroutines are
// idle when it returns: what comes of one event is over before the next one.
// Otherwise the goroutines' order would decide how many attempts the two lead to.
func (r *simRun) pass(d time.Duration) {
	const look = time.Hour
	synctest.Wait()
	for until := time.Now().Add(d); time.Now().Before(until) && !r.t.Failed(); {
		time.Sleep(min(look, time.Until(until)))
		synctest.Wait()
		r.gateway.set(func() {
			if !r.gateway.down {
				r.gateway.absences.checkAll(time.Now())
			}
		})
		for _, m := range r.mappings {
			for _, granted := range m.Grants() {
				if at := granted.Expires(); !at.IsZero() && !time.Now().Before(at) {
					r.t.Errorf("%v: State tells of what ran out at %v", m, at)
				}
			}
		}
		if n := runtime.NumGoroutine(); n > r.idle+3*(4+2*forward.MaxWorkers) { // those of other simulations, too
			r.t.Errorf("%d goroutines, %d before the first mapping", n, r.idle)
		}
	}
}

// seededJitter is chance without chance: it hangs on the moment, not on who asks
// first in it.
func seededJitter(seed uint64) func(time.Duration) time.Duration {
	return func(d time.Duration) time.Duration {
		rng := rand.New(rand.NewPCG(seed, uint64(time.Now().UnixNano())))
		return time.Duration(rng.Int64N(int64(d) + 1))
	}
}

func (r *simRun) enable() {
	for i := range r.count {
		m, err := r.forwarder.Enable(r.t.Context(), append(r.options(i), forward.Background())...)
		if err != nil {
			r.t.Fatal(err)
		}
		r.mappings = append(r.mappings, m)
	}
	synctest.Wait()
}

// watchBursts checks how many calls a second there are.
func (r *simRun) watchBursts() {
	most := int(forward.MaxWorkers * (time.Second / fastest))
	// Renewals come spread over an eighth of the lifetime, and with chance.
	usual := 3*r.count/int(r.lifetime/8/time.Second) + 20
	r.gateway.set(func() {
		r.gateway.storm = 2*r.turn() + 4*retryWait
		r.gateway.calm = time.Now().Add(r.gateway.storm)
		r.gateway.bursts = func(second time.Time, calls int, calm bool) {
			if calls > most || calm && calls > usual {
				r.t.Errorf("%d calls in the second %v, calm: %v; want at most %d, and %d where nothing has happened",
					calls, second.UTC(), calm, most, usual)
			}
		}
	})
}

// fault makes something happen.
func (r *simRun) fault() {
	g := r.gateway
	switch kind := r.rng.IntN(6); kind {
	case 0, 1:
		g.restart(kind == 0)
	case 2:
		g.move(netip.AddrFrom4([4]byte{45, 45, 45, byte(1 + r.rng.IntN(250))}))
	default:
		g.cut(true)
		r.pass(time.Minute + time.Duration(r.rng.Int64N(int64(r.outage))))
		if kind == 4 { // another host got a port meanwhile
			g.set(func() { g.others = map[uint16]bool{uint16(1024 + r.rng.IntN(r.count)): true} })
		}
		if kind != 3 {
			g.restart(kind == 4)
		}
		g.cut(false)
	}
}

// heal ends all faults, and checks that everything is there then, and that the
// events told so.
func (r *simRun) heal() {
	r.gateway.set(func() { r.gateway.loss, r.gateway.epoch, r.gateway.others = 0, false, nil })
	r.gateway.restart(true)
	r.pass(10*time.Minute + 2*r.turn())
	synctest.Wait()
	r.chronicle.compare(r.mappings)
	for _, m := range r.mappings {
		if err := m.Err(); err != nil || len(m.Grants()) == 0 {
			r.t.Errorf("%v: %v", m, err)
		}
		for _, granted := range m.Grants() {
			row, has := r.gateway.rows[simKey{granted.Protocol, granted.Internal.Port()}]
			if !has || row.external != granted.External.Port() || !row.runs(time.Now()) {
				r.t.Errorf("%v: the gateway has %v", m, row)
			}
		}
	}
	report(r.t, r.gateway.absences.wrong)
	report(r.t, r.chronicle.wrong)
}

// end checks that nothing is left after Shutdown.
func (r *simRun) end() {
	if n := r.gateway.peak; n > forward.MaxWorkers {
		r.t.Errorf("%d calls at once", n)
	}
	r.gateway.set(func() { r.gateway.calm = time.Now().Add(day) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	if err := r.forwarder.Shutdown(ctx); err != nil {
		r.t.Errorf("Shutdown: %v", err)
	}
	if n := len(r.gateway.rows); n != 0 {
		r.t.Errorf("after Shutdown the gateway has %d", n)
	}
	if n := r.gateway.peak; n > forward.MaxWorkers+1 { // what could not be deleted before is tried beside the rest
		r.t.Errorf("%d calls at once in the end", n)
	}
}

// report has the first few of what is wrong.
func report(t *testing.T, wrong []string) {
	const few = 10
	for _, w := range wrong[:min(few, len(wrong))] {
		t.Error(w)
	}
	if more := len(wrong) - few; more > 0 {
		t.Error(fmt.Sprint("and ", more, " more"))
	}
}
