package forward_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

const (
	modelWorldSteps = 200
	modelCalmSteps  = 100 // between two calms
	modelCalm       = 50 * time.Minute
	modelActors     = 4
	modelSlots      = 12 // for handles
	modelPorts      = 3  // internal ports that the handles share
	modelRaces      = 60 // between Mapping.Close and Shutdown, in each world
)

// The model does random operations from several goroutines on several Forwarders
// that share gateways and ports. Callbacks call back, and the gateways restart,
// refuse, change and fall silent. After each few operations, the test compares what
// the handles report, what the gateways have, and the events.
//
// A step is one operation. GOFORWARD_STEPS sets their number. The steps are done in
// worlds, each with its own seed. A failure prints the seed of its world.
func TestModel(t *testing.T) {
	// One thread: which goroutine of one moment is first then follows from the seed,
	// except with the race detector, which draws it.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	steps := 10_000
	if text := os.Getenv("GOFORWARD_STEPS"); text != "" {
		var err error
		if steps, err = strconv.Atoi(text); err != nil {
			t.Fatalf("GOFORWARD_STEPS: %v", err)
		}
	}
	seed := simSeed(t)
	t.Logf("%d steps, the first GOFORWARD_SEED=%d", steps, seed)
	done, counts := 0, map[string]int{}
	for ; done < steps && !t.Failed(); seed++ {
		done += modelRun(t, seed, min(modelWorldSteps, steps-done), counts)
	}
	t.Logf("%d steps, checked: %v", done, counts)
}

// modelRun does steps in the world of a seed, and returns how many.
func modelRun(t *testing.T, seed uint64, steps int, counts map[string]int) (done int) {
	synctest.Test(t, func(t *testing.T) {
		w := newModelWorld(t, seed, counts)
		w.run(steps)
		w.end()
		w.report()
		done = w.steps
	})
	return done
}

// Worlds of the model in which a mapping once stayed on a gateway, or was reported and not
// there.
func TestModelFound(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, seed := range []uint64{
		12025, 15025, 18032, 29013, 33050, 40002, 55023, 67036, 69006, 75039, 85005, 191009,
		197005, 206023, 258039, 322006, 515042, 630037, 676032, 802028, 813035, 1049013, 1096043, 1219036,
		1212021, 1447048, 1524024, 1579010, 1890006,
	} {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			modelRun(t, seed, modelWorldSteps, map[string]int{})
		})
	}
}

// modelWorld is several Forwarders, gateways and goroutines in one bubble.
type modelWorld struct {
	t        *testing.T
	seed     uint64
	rng      *rand.Rand // of the goroutine that runs the world
	gateways []*modelGateway
	actors   []*modelActor
	steps    int
	registry *forward.Registry
	jitter   func(time.Duration) time.Duration
	instant  bool         // the gateways answer at once, and callbacks do not sleep
	calming  atomic.Bool  // callbacks do not call back
	sleeping atomic.Int32 // goroutines that sleep in a logger or a callback

	mu         sync.Mutex
	forwarders []*modelForwarder
	slots      []modelSlot
	handles    map[*forward.Mapping]*modelHandle
	order      []*modelHandle // the same, in the order of their first appearance
	wrong      []string
	counts     map[string]int // of what was checked
	lines      []modelLine    // what happened last
}

// modelLine is a line of the report.
type modelLine struct {
	at     time.Time
	format string
	args   []any
}

func newModelWorld(t *testing.T, seed uint64, counts map[string]int) *modelWorld {
	w := &modelWorld{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), counts: counts,
		handles: map[*forward.Mapping]*modelHandle{}, slots: make([]modelSlot, modelSlots),
	}
	for i, at := range modelAddrs {
		w.gateways = append(w.gateways, newModelGateway(w, i, at.gateway, at.local))
	}
	for i := range 5 {
		w.forwarders = append(w.forwarders, w.newForwarder(i))
	}
	for i := range modelActors {
		a := &modelActor{world: w, rng: rand.New(rand.NewPCG(seed, uint64(1+i))), start: make(chan struct{})}
		w.actors = append(w.actors, a)
		go a.run()
	}
	return w
}

// run does a number of steps, and checks after each few.
func (w *modelWorld) run(steps int) {
	for calm := modelCalmSteps; w.steps < steps && w.sane(); {
		w.round(min(1+w.rng.IntN(3), steps-w.steps))
		if w.steps >= calm {
			w.calm()
			calm += modelCalmSteps
			w.calming.Store(false)
			for _, g := range w.gateways {
				g.set(func() { g.loss = modelLoss })
			}
		}
	}
}

// round begins a few steps at about the same time, perhaps with a fault.
func (w *modelWorld) round(steps int) {
	for range steps {
		if a := w.actors[w.rng.IntN(len(w.actors))]; a.busy.CompareAndSwap(false, true) {
			a.start <- struct{}{}
			w.steps++
		}
	}
	if w.rng.IntN(3) == 0 {
		time.Sleep(w.upTo(modelOffset))
		w.fault()
	}
	pause := 50 * time.Millisecond
	switch n := w.rng.IntN(100); {
	case n < 5:
		pause = 20 * time.Minute
	case n < 15:
		pause = 2 * time.Minute
	case n < 40:
		pause = 3 * time.Second
	}
	time.Sleep(w.upTo(pause))
	w.settle()
	w.check(false)
}

func (w *modelWorld) upTo(d time.Duration) time.Duration {
	return 1 + time.Duration(w.rng.Int64N(int64(d)))
}

// settle waits until all goroutines are idle, and none of them sleeps in a logger
// or a callback.
func (w *modelWorld) settle() {
	for range 1000 {
		synctest.Wait()
		if w.sleeping.Load() == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	w.fail("a logger or a callback is called all the time")
}

// calm ends all faults, and waits until everything must be in order.
func (w *modelWorld) calm() {
	w.trace("calm")
	for _, g := range w.gateways {
		g.heal()
	}
	time.Sleep(time.Minute) // the steps in progress end
	for i, a := range w.actors {
		if a.busy.Load() {
			w.fail("goroutine %d is still busy", i)
		}
	}
	for _, f := range w.current() {
		if f.routed {
			f.setRoute(f.gateways[w.rng.IntN(len(f.gateways))], true)
		}
	}
	time.Sleep(modelCalm / 2)
	w.calming.Store(true)
	time.Sleep(modelCalm / 2)
	w.settle()
	w.check(true)
	w.checkSharing()
}

// end ends all faults and closes everything. Nothing is left then.
func (w *modelWorld) end() {
	w.calm()
	var ending sync.WaitGroup
	for i, f := range w.current() {
		ending.Go(func() {
			time.Sleep(time.Duration(i))
			w.shutdown(f, time.Hour, false)
		})
	}
	ending.Wait()
	for _, a := range w.actors {
		close(a.start)
	}
	w.checkEnd()
	// More threads than processors: any of them may be preempted anywhere.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	w.instant = true
	for range modelRaces {
		if w.sane() {
			w.race()
		}
	}
	time.Sleep(time.Minute) // requests that were given up end
}

// race closes mappings and their Forwarder at one moment. The gateway answers at
// once: if an answer took virtual time, a goroutine that was preempted would always
// go on before it.
func (w *modelWorld) race() {
	f := &modelForwarder{world: w, gateways: w.gateways[:1], closing: true}
	var err error
	if f.Forwarder, err = forward.New(&forward.Config{Backends: []backends.Backend{f.gateways[0]}}); err != nil {
		w.t.Fatal(err)
	}
	var held []backends.Mapping
	var racing sync.WaitGroup
	begin := make(chan struct{})
	for port := range uint16(4) {
		m, err := f.Enable(w.t.Context(), forward.TCP(20000+port))
		if err != nil {
			w.fail("Enable before a race: %v", err)
			continue
		}
		held = append(held, m.Grants()...)
		racing.Go(func() {
			<-begin
			_ = m.Close()
		})
	}
	close(begin)
	if err := f.Shutdown(w.t.Context()); err != nil {
		w.fail("Shutdown in a race: %v", err)
	}
	w.checkGone(f, held)
	racing.Wait()
}

// current returns the Forwarders that are not replaced.
func (w *modelWorld) current() []*modelForwarder {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.forwarders)
}

// pause is the time that an answer takes.
func (w *modelWorld) pause(ctx context.Context, d time.Duration) error {
	if w.instant {
		return nil
	}
	return pause(ctx, d)
}

// sleep sleeps in a logger or a callback.
func (w *modelWorld) sleep(d time.Duration) {
	if w.instant {
		return
	}
	w.sleeping.Add(1)
	defer w.sleeping.Add(-1)
	time.Sleep(d)
}

// at returns a source of chance that depends on the seed, the time and a number. It
// is for goroutines of a Forwarder.
func (w *modelWorld) at(n uint64) *rand.Rand {
	return rand.New(rand.NewPCG(w.seed<<16|n, uint64(time.Now().UnixNano())))
}

// count counts what was checked.
func (w *modelWorld) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// fail records what is wrong.
func (w *modelWorld) fail(format string, args ...any) {
	w.trace("WRONG: "+format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// sane reports whether nothing is wrong so far.
func (w *modelWorld) sane() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.wrong) == 0
}

// trace keeps a line for the report, which ends with the first thing that is wrong.
func (w *modelWorld) trace(format string, args ...any) {
	const kept = 400
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.instant || len(w.wrong) > 0 {
		return
	}
	if len(w.lines) >= 2*kept {
		w.lines = append(w.lines[:0], w.lines[kept:]...)
	}
	w.lines = append(w.lines, modelLine{time.Now(), format, args})
}

const modelTime = "02 15:04:05.000000000"

// report prints what is wrong, and what happened before.
func (w *modelWorld) report() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.wrong) == 0 {
		return
	}
	var b strings.Builder
	for _, l := range w.lines {
		fmt.Fprintf(&b, "%s %s\n", l.at.UTC().Format(modelTime), fmt.Sprintf(l.format, l.args...))
	}
	w.t.Logf("what happened:\n%s", b.String())
	report(w.t, w.wrong)
	w.t.Errorf("GOFORWARD_SEED=%d begins with this world", w.seed)
}
