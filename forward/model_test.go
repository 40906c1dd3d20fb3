package forward_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
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
	"github.com/natforward/goforward/internal/testseed"
)

const (
	modelWorldSteps    = 200
	modelQuietInterval = 100 // steps between two quiet periods
	modelQuietTime     = 50 * time.Minute
	modelActors        = 4
	modelSlots         = 12 // slots for handles
	modelPorts         = 3  // internal ports that the handles share
	modelRaces         = 60 // races between Mapping.Close and Shutdown in each world
)

// TestModel performs random operations from several goroutines on several Forwarders that
// share gateways and ports. Callbacks call methods, and the gateways restart, refuse,
// change and stop replying. After every few operations, the test compares the reports of
// the handles, the tables of the gateways, and the events.
//
// A step is one operation. GOFORWARD_STEPS sets their number. The steps run in
// several simulated networks, called worlds, each with its own seed. A failure prints the
// seed of its world.
func TestModel(t *testing.T) {
	// With one thread, the seed determines the order of the goroutines that are ready at one time.
	// The race detector makes the order random.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	steps := 10_000
	if text := os.Getenv("GOFORWARD_STEPS"); text != "" {
		var err error
		if steps, err = strconv.Atoi(text); err != nil {
			t.Fatalf("GOFORWARD_STEPS: %v", err)
		}
	}
	seed := testseed.Of(t)
	t.Logf("%d steps, beginning with GOFORWARD_SEED=%d", steps, seed)
	done, counts := 0, map[string]int{}
	for ; done < steps && !t.Failed(); seed++ {
		done += modelRun(t, seed, min(modelWorldSteps, steps-done), counts)
	}
	t.Logf("%d steps, checked: %v", done, counts)
}

// modelRun creates a world from a seed, runs steps in it, and returns how many it has run.
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

// TestModelRegressions repeats the seeds with which the model once failed: a mapping remained
// on a gateway, or a handle reported a mapping that did not exist.
func TestModelRegressions(t *testing.T) {
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

// modelWorld is a simulated network in one synctest bubble: several gateways, the Forwarders
// that use them, and goroutines that call the Forwarders.
type modelWorld struct {
	t        *testing.T
	seed     uint64
	rng      *rand.Rand // for the goroutine that runs the world
	gateways []*modelGateway
	actors   []*modelActor
	steps    int
	registry *forward.Registry
	jitter   func(time.Duration) time.Duration
	instant  bool         // the gateways reply at once, and callbacks do not sleep
	quiet    atomic.Bool  // callbacks call no methods
	sleeping atomic.Int32 // goroutines that sleep in a logger or a callback

	mu         sync.Mutex
	forwarders []*modelForwarder
	slots      []modelSlot
	handles    map[*forward.Mapping]*modelHandle
	order      []*modelHandle // the same handles, in the order in which they were created
	problems   []string
	counts     map[string]int // number of checks by name
	lines      []modelLine    // the last lines of the report
}

// modelLine is a line of the report.
type modelLine struct {
	at     time.Time
	format string
	args   []any
}

// newModelWorld creates the gateways and Forwarders, and starts the actors.
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

// run runs a number of steps, and checks the world after every few steps.
func (w *modelWorld) run(steps int) {
	for nextQuiet := modelQuietInterval; w.steps < steps && w.ok(); {
		w.round(min(1+w.rng.IntN(3), steps-w.steps))
		if w.steps >= nextQuiet {
			w.quiesce()
			nextQuiet += modelQuietInterval
			w.quiet.Store(false)
			for _, g := range w.gateways {
				g.set(func() { g.lossPercent = modelLoss })
			}
		}
	}
}

// round starts a few steps at about the same time, perhaps with a fault.
func (w *modelWorld) round(steps int) {
	for range steps {
		if a := w.actors[w.rng.IntN(len(w.actors))]; a.busy.CompareAndSwap(false, true) {
			a.start <- struct{}{}
			w.steps++
		}
	}
	if w.rng.IntN(3) == 0 {
		time.Sleep(w.randDuration(modelMaxDelay))
		w.injectFault()
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
	time.Sleep(w.randDuration(pause))
	w.settle()
	w.check(false)
}

// randDuration returns a random duration from 1 ns to d.
func (w *modelWorld) randDuration(d time.Duration) time.Duration {
	return 1 + time.Duration(w.rng.Int64N(int64(d)))
}

// settle waits until all goroutines are idle, and none of them sleeps in a logger or a
// callback.
func (w *modelWorld) settle() {
	for range 1000 {
		synctest.Wait()
		if w.sleeping.Load() == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	w.fail("a logger or a callback is called without end")
}

// quiesce ends all faults, and waits until the handles and gateways must agree.
func (w *modelWorld) quiesce() {
	w.trace("quiet period")
	for _, g := range w.gateways {
		g.endFaults()
	}
	time.Sleep(time.Minute) // until the steps in progress have ended
	for i, a := range w.actors {
		if a.busy.Load() {
			w.fail("goroutine %d is still busy", i)
		}
	}
	for _, f := range w.current() {
		if f.usesRoute {
			f.setRoute(f.gateways[w.rng.IntN(len(f.gateways))], true)
		}
	}
	time.Sleep(modelQuietTime / 2)
	w.quiet.Store(true)
	time.Sleep(modelQuietTime / 2)
	w.settle()
	w.check(true)
	w.checkSharing()
}

// end ends all faults and closes everything. No mapping may remain.
func (w *modelWorld) end() {
	w.quiesce()
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
	// With more threads than processors, each may be preempted at any point.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	w.instant = true
	for range modelRaces {
		if w.ok() {
			w.raceCloses()
		}
	}
	time.Sleep(time.Minute) // until abandoned requests have ended
}

// raceCloses closes mappings and their Forwarder at the same moment. The gateway replies
// at once. If a reply took virtual time, a preempted goroutine would always continue
// before the reply.
func (w *modelWorld) raceCloses() {
	f := &modelForwarder{world: w, gateways: w.gateways[:1], closing: true}
	var err error
	if f.Forwarder, err = forward.New(&forward.Config{Backends: []backends.Backend{f.gateways[0]}}); err != nil {
		w.t.Fatal(err)
	}
	var held []backends.Mapping
	var racing sync.WaitGroup
	start := make(chan struct{})
	for port := range uint16(4) {
		m, err := f.Enable(w.t.Context(), forward.TCP(20000+port))
		if err != nil {
			w.fail("Enable before a race: %v", err)
			continue
		}
		held = append(held, m.Grants()...)
		racing.Go(func() {
			<-start
			_ = m.Close()
		})
	}
	close(start)
	if err := f.Shutdown(w.t.Context()); err != nil {
		w.fail("Shutdown in a race: %v", err)
	}
	w.checkDeleted(f, held)
	racing.Wait()
}

// current returns the Forwarders that have not been replaced.
func (w *modelWorld) current() []*modelForwarder {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.forwarders)
}

// pause sleeps for the latency of a reply.
func (w *modelWorld) pause(ctx context.Context, d time.Duration) error {
	if w.instant {
		return nil
	}
	return sleepContext(ctx, d)
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

// randAt returns a random source that depends on the seed, the time and a number. It is
// for the goroutines of a Forwarder.
func (w *modelWorld) randAt(n uint64) *rand.Rand {
	return rand.New(rand.NewPCG(w.seed<<16|n, uint64(time.Now().UnixNano())))
}

// count counts the checks by name.
func (w *modelWorld) count(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[name]++
}

// fail records a problem.
func (w *modelWorld) fail(format string, args ...any) {
	w.trace("PROBLEM: "+format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// ok reports whether no problem has been recorded.
func (w *modelWorld) ok() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.problems) == 0
}

// trace adds a line to the report, which ends with the first problem.
func (w *modelWorld) trace(format string, args ...any) {
	const kept = 400
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.instant || len(w.problems) > 0 {
		return
	}
	if len(w.lines) >= 2*kept {
		w.lines = append(w.lines[:0], w.lines[kept:]...)
	}
	w.lines = append(w.lines, modelLine{time.Now(), format, args})
}

// modelTimeFormat is the format of times in the report.
const modelTimeFormat = "02 15:04:05.000000000"

// report prints the problems, and the lines before the first of them.
func (w *modelWorld) report() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.problems) == 0 {
		return
	}
	var b strings.Builder
	for _, l := range w.lines {
		fmt.Fprintf(&b, "%s %s\n", l.at.UTC().Format(modelTimeFormat), fmt.Sprintf(l.format, l.args...))
	}
	w.t.Logf("steps before the problem:\n%s", b.String())
	reportProblems(w.t, w.problems)
	w.t.Errorf("to repeat this run, set GOFORWARD_SEED=%d", w.seed)
}

// modelMaxDelay is the longest delay between the start of a round and the start of its
// steps.
const modelMaxDelay = 20 * time.Millisecond

// modelSpec is what a call of Enable requests.
type modelSpec struct {
	protocols                  []backends.Protocol
	port                       uint16
	samePort, once, background bool
	text                       string
	options                    []forward.Option
}

// newModelSpec returns a random spec.
func newModelSpec(rng *rand.Rand) *modelSpec {
	s := &modelSpec{port: 8080 + uint16(rng.IntN(modelPorts))}
	switch n := rng.IntN(10); {
	case n < 5:
		s.protocols = []backends.Protocol{backends.TCP}
	case n < 7:
		s.protocols = []backends.Protocol{backends.UDP}
	default:
		s.protocols = []backends.Protocol{backends.TCP, backends.UDP}
	}
	s.options = append(s.options, s.selector())
	s.background = rng.IntN(4) == 0
	external := 9000 + uint16(rng.IntN(2))
	switch rng.IntN(14) { // half of the specs have no further option, and can share an entry
	case 0:
		s.add("Exact", forward.Exact())
	case 1:
		s.samePort = true
		s.add("SamePort", forward.SamePort())
	case 2:
		s.add("External", forward.External(external))
	case 3:
		s.add("short", forward.Lifetime(2*time.Minute))
	case 4:
		s.add("long", forward.Lifetime(time.Hour))
	case 5:
		s.add("Permanent", forward.Lifetime(forward.Forever))
	case 6:
		s.once, s.background = true, false
		s.add("Once", forward.Once())
	}
	if s.background {
		s.add("Background", forward.Background())
	}
	return s
}

// add adds an option.
func (s *modelSpec) add(text string, o forward.Option) {
	s.text += " " + text
	s.options = append(s.options, o)
}

func (s *modelSpec) String() string { return fmt.Sprintf("%v %d%s", s.protocols, s.port, s.text) }

// selector selects the mappings with the same protocols and port.
func (s *modelSpec) selector() forward.Criterion {
	if len(s.protocols) > 1 {
		return forward.Both(s.port)
	}
	return forward.Protocol(s.protocols[0], s.port)
}

// mayRequest reports whether a mapping of the spec may request the row of a key.
func (s *modelSpec) mayRequest(k modelKey) bool {
	return slices.Contains(s.protocols, k.protocol) && (s.port == k.internal || s.samePort)
}

// modelActor is a goroutine that performs steps.
type modelActor struct {
	world *modelWorld
	rng   *rand.Rand
	start chan struct{}
	busy  atomic.Bool
}

// modelStep is an operation. All of its parameters are drawn before it starts, so that
// they do not depend on the results of earlier operations.
type modelStep struct {
	kind, choice         int // from 0 to 99
	slot                 int
	spec                 *modelSpec
	cancelAfter, timeout time.Duration // when its context is cancelled; its timeout
}

// run performs a step whenever it receives from start.
func (a *modelActor) run() {
	for range a.start {
		time.Sleep(1 + time.Duration(a.rng.Int64N(int64(modelMaxDelay))))
		a.step()
		a.busy.Store(false)
	}
}

// step performs one operation.
func (a *modelActor) step() {
	s := modelStep{
		kind: a.rng.IntN(100), choice: a.rng.IntN(100), slot: a.rng.IntN(modelSlots), spec: newModelSpec(a.rng),
		cancelAfter: time.Duration(1 + a.rng.Int64N(int64(40*time.Millisecond))), timeout: time.Duration(1 + a.rng.Int64N(int64(10*time.Second))),
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch n := a.rng.IntN(100); {
	case n < 15:
		defer time.AfterFunc(s.cancelAfter, cancel).Stop()
	case n < 30:
		ctx, cancel = context.WithTimeout(ctx, s.timeout)
		defer cancel()
	}
	a.world.runStep(ctx, &s)
}

// runStep performs an operation. If it needs a handle and there is none, it calls Enable.
func (w *modelWorld) runStep(ctx context.Context, s *modelStep) {
	f, h := w.forwarder(s.slot), w.handle(s.slot)
	w.trace("Forwarder %d: operation %d, %d on slot %d, %v", f.index, s.kind, s.choice, s.slot, s.spec)
	switch kind := s.kind; {
	case kind < 20:
		w.callForwarder(ctx, f, s)
	case kind < 23:
		timeout := time.Duration(s.choice) * 200 * time.Millisecond
		if w.instant {
			timeout = time.Hour // the state after an error is not known
		}
		w.shutdown(f, timeout, s.choice%3 == 0)
		w.replace(f)
	case kind < 28 && f.usesRoute:
		routes := append([]*modelGateway{nil}, f.gateways...)
		f.setRoute(routes[s.choice%len(routes)], s.choice < 80)
	case h == nil:
		w.enable(ctx, s.slot, s.spec)
	case kind < 60:
		w.checkError(ctx, f, "Close", h.mapping.Shutdown(ctx))
		w.mu.Lock()
		h.closeReturned = true
		w.mu.Unlock()
	case kind < 85:
		w.refresh(ctx, h, s)
	default:
		_, _, _, _, _ = h.mapping.External(), h.mapping.Internal(), h.mapping.Err(), h.mapping.Expires(), h.mapping.String()
		ctx, cancel := context.WithTimeout(ctx, s.cancelAfter)
		defer cancel()
		_ = h.mapping.Wait(ctx)
	}
}

// callForwarder calls a method of a Forwarder.
func (w *modelWorld) callForwarder(ctx context.Context, f *modelForwarder, s *modelStep) {
	switch choice := s.choice; {
	case choice < 20:
		w.checkError(ctx, f, "Disable", f.Disable(ctx, s.spec.selector()))
	case choice < 30:
		_, err := f.DisableAll(ctx, s.spec.selector())
		w.checkError(ctx, f, "DisableAll", err)
	case choice < 60:
		w.checkError(ctx, f, "Refresh without selectors", f.Refresh(ctx))
	case choice < 80:
		_, err := f.ExternalIP(ctx)
		w.checkError(ctx, f, "ExternalIP", err)
	default:
		_, err := f.Mappings(ctx)
		w.checkError(ctx, f, "Mappings", err)
	}
}

// refresh refreshes a handle, perhaps with other options.
func (w *modelWorld) refresh(ctx context.Context, h *modelHandle, s *modelStep) {
	var opts []forward.Option
	switch choice := s.choice; {
	case choice < 60:
	case choice < 75:
		opts = append(opts, forward.Lifetime(time.Duration(1+choice%10)*5*time.Minute))
	case choice < 90 && !h.spec.samePort: // SamePort excludes External
		opts = append(opts, forward.External(9000+uint16(choice%3)))
	default:
		opts = append(opts, forward.Description("model"))
	}
	if len(opts) > 0 {
		w.mu.Lock()
		h.optionsChanged = true
		w.mu.Unlock()
	}
	w.checkError(ctx, h.forwarder, fmt.Sprint("Refresh with ", len(opts), " options"), h.mapping.Refresh(ctx, opts...))
}

// forwarder returns the Forwarder of a slot.
func (w *modelWorld) forwarder(slot int) *modelForwarder {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.forwarders[slot%len(w.forwarders)]
}

// handle returns the open handle of a slot, or nil.
func (w *modelWorld) handle(slot int) *modelHandle {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.slots[slot]
	if s.handle != nil && s.handle.isClosed() {
		s.handle = nil
	}
	return s.handle
}

// enable enables a mapping in a slot if the slot is free.
func (w *modelWorld) enable(ctx context.Context, slot int, spec *modelSpec) {
	if w.handle(slot) != nil || w.instant && spec.once { // the rows of mappings with Once are not known
		return
	}
	w.mu.Lock()
	s := &w.slots[slot]
	f := w.forwarders[slot%len(w.forwarders)]
	free := s.enabling == nil
	if free {
		s.enabling = spec
	}
	w.mu.Unlock()
	if !free {
		return
	}
	m, err := f.Enable(ctx, spec.options...)
	if err == nil {
		h := w.handleOf(f, m)
		w.mu.Lock()
		h.spec, s.handle = spec, h
		w.mu.Unlock()
		w.noteHolder(h, m.Grants())
	}
	w.mu.Lock()
	s.enabling = nil
	w.mu.Unlock()
	w.checkError(ctx, f, fmt.Sprint("Enable ", spec), err)
}

// noteHolder records in the rows of a handle that its Forwarder holds them.
func (w *modelWorld) noteHolder(h *modelHandle, grants []backends.Mapping) {
	w.mu.Lock()
	once := h.spec != nil && h.spec.once
	w.mu.Unlock()
	for _, m := range grants {
		g := w.gateway(m)
		g.set(func() {
			row := g.record(keyOf(m)).live(time.Now())
			if row == nil {
				return
			}
			row.heldByOnce = row.heldByOnce || once
			if !slices.Contains(row.holders, h.forwarder) {
				row.holders = append(row.holders, h.forwarder)
			}
		})
	}
}

// shutdown closes a Forwarder, with Close or Shutdown. If that returns nil, the gateways
// must not have any of its mappings at that moment.
func (w *modelWorld) shutdown(f *modelForwarder, timeout time.Duration, byClose bool) {
	w.mu.Lock()
	alreadyClosing := f.closing
	f.closing = true
	var once []*modelHandle
	var held []backends.Mapping
	for _, h := range w.order {
		switch state := h.mapping.Grants(); {
		case h.forwarder != f || h.closeReturned || !h.closedAt.IsZero() && time.Since(h.closedAt) > modelCloseTime: // reported before
		case h.spec != nil && h.spec.once:
			once = append(once, h)
		case len(state) > 0:
			held = append(held, state...)
		default:
			held = append(held, h.lastEvent.Grants...)
		}
	}
	w.mu.Unlock()
	if alreadyClosing {
		return
	}
	for _, h := range once { // the rows of mappings with Once may remain
		w.noteHolder(h, h.mapping.Grants())
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var err error
	if byClose {
		err = f.Close()
	} else {
		err = f.Shutdown(ctx)
	}
	w.trace("Forwarder %d: Shutdown returned %v", f.index, err)
	w.mu.Lock()
	f.closed = true
	w.mu.Unlock()
	switch {
	case err != nil:
	case w.instant: // the holders are not known
		return
	default:
		w.checkDeleted(f, held)
		return
	}
	for _, g := range f.gateways { // the reported mappings may remain
		g.set(func() {
			for _, k := range g.keys(time.Now()) {
				row := g.records[k].row
				row.deleteUnanswered = true
				row.inCloseError = row.inCloseError || strings.Contains(err.Error(), fmt.Sprintf("%v port %d ", k.protocol, k.internal))
				if !w.otherOpen(row.holders, f) {
					row.mayRemain = true
				}
			}
		})
	}
}

// otherOpen reports whether another one of these Forwarders is open.
func (w *modelWorld) otherOpen(forwarders []*modelForwarder, except *modelForwarder) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(forwarders, func(f *modelForwarder) bool { return f != except && !f.closed })
}

// replace creates a new Forwarder in place of a closed one.
func (w *modelWorld) replace(f *modelForwarder) {
	w.mu.Lock()
	alreadyReplaced := f.replaced
	f.replaced = true
	w.mu.Unlock()
	if alreadyReplaced {
		return
	}
	next := w.newForwarder(f.index)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forwarders[f.index] = next
}

// modelLifetime is the lifetime that the Forwarders request. Except for Forever, no
// lifetime is longer than one hour, so that all entries are renewed in a quiet period.
const modelLifetime = 10 * time.Minute

// modelForwarder is a Forwarder that uses ready-made backends or the default route.
type modelForwarder struct {
	*forward.Forwarder
	world           *modelWorld
	index           int
	gateways        []*modelGateway // gateways that it may use
	activeCallbacks atomic.Int32    // callbacks in progress

	usesRoute bool
	routeLock chan struct{} // holds one element while the route changes
	route     atomic.Pointer[modelGateway]

	// Guarded by world.mu.
	closing, closed, replaced bool // Shutdown was called; has returned; the Forwarder was replaced
}

// modelHandle is a mapping, and the state of it that the model has recorded.
type modelHandle struct {
	mapping   *forward.Mapping
	forwarder *modelForwarder

	// Guarded by world.mu.
	spec           *modelSpec // nil until Enable returns
	optionsChanged bool       // Refresh changed options of the spec
	lastEvent      forward.Event
	closedAt       time.Time // when it was first seen to be closed
	closeReturned  bool      // Close has returned
}

// modelSlot keeps a handle for later operations. The number of the slot determines the
// Forwarder.
type modelSlot struct {
	handle   *modelHandle
	enabling *modelSpec // Enable is in progress
}

// newForwarder returns the i-th Forwarder. Two of them use the same gateway, one uses
// this gateway and another one, and two use the default route.
func (w *modelWorld) newForwarder(i int) *modelForwarder {
	f := &modelForwarder{world: w, index: i, routeLock: make(chan struct{}, 1)}
	switch i {
	case 0, 1:
		f.gateways = w.gateways[:1]
	case 2:
		f.gateways = w.gateways[:modelReadyMade]
	default:
		f.gateways, f.usesRoute = w.gateways[modelReadyMade:], true
	}
	config := forward.Config{Lifetime: modelLifetime, OnEvent: f.onEvent, Logger: slog.New(modelLogger{w})}
	if !f.usesRoute {
		for _, g := range f.gateways {
			config.Backends = append(config.Backends, g)
		}
	}
	var err error
	if f.Forwarder, err = forward.New(&config); err != nil {
		w.t.Fatal(err)
	}
	if w.registry == nil {
		w.jitter = seededJitter(w.seed)
		w.registry = forward.NewRegistry(w.jitter)
	}
	f.SetRegistry(w.registry, w.jitter)
	if f.usesRoute {
		f.setRoute(f.gateways[0], false)
	}
	return f
}

// setRoute sets the gateway of the default route, or removes the route if g is nil. The
// Forwarder is notified if notify is set; otherwise it has to find the change itself.
func (f *modelForwarder) setRoute(g *modelGateway, notify bool) {
	f.routeLock <- struct{}{}
	defer func() { <-f.routeLock }()
	f.route.Store(g)
	if g == nil {
		f.SetRoute(netip.Addr{}, f.gateways[0].local)
	} else {
		f.SetRoute(g.addr.Addr(), g.local, g)
	}
	if notify {
		f.NetworkChanged()
	}
}

// handleOf returns the handle of a mapping, and creates it if necessary.
func (w *modelWorld) handleOf(f *modelForwarder, m *forward.Mapping) *modelHandle {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := w.handles[m]
	if h == nil {
		h = &modelHandle{mapping: m, forwarder: f}
		w.handles[m] = h
		w.order = append(w.order, h)
	}
	return h
}

// isClosed reports whether the mapping was closed.
func (h *modelHandle) isClosed() bool {
	select {
	case <-h.mapping.Changed():
		return true
	default:
		return false
	}
}

func (h *modelHandle) String() string {
	return fmt.Sprint(h.spec, " of Forwarder ", h.forwarder.index)
}

// onEvent checks an event, and may call methods of the Forwarder.
func (f *modelForwarder) onEvent(e forward.Event) {
	f.activeCallbacks.Add(1)
	defer f.activeCallbacks.Add(-1)
	w, h := f.world, f.world.handleOf(f, e.Mapping)
	e.Grants, e.Previous = byProtocol(e.Grants), byProtocol(e.Previous)
	w.trace("event of Forwarder %d: %v %s, before %s: %s", f.index, e.Kind, grantsText(e.Grants), grantsText(e.Previous), e.Reason)
	w.count(e.Kind.String())
	w.mu.Lock()
	previous := h.lastEvent
	if e.Kind != forward.EventFailed { // EventFailed does not change the grants
		h.lastEvent = e
	}
	w.mu.Unlock()
	if e.Kind != forward.EventFailed {
		w.noteHolder(h, e.Grants)
	}
	if problem := sequenceError(previous, e); problem != "" {
		w.fail("%v: %v after %v: %s", e.Mapping, e.Kind, previous.Kind, problem)
	}
	_, _ = e.Mapping.Grants(), e.Mapping.External()
	if w.ok() && !w.quiet.Load() && e.Kind != forward.EventFailed {
		f.runCallback(e)
	}
}

// runCallback does what a callback may do.
func (f *modelForwarder) runCallback(e forward.Event) {
	w := f.world
	rng := w.randAt(uint64(f.index)<<8 | uint64(e.Kind))
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rng.Int64N(int64(10*time.Second))))
	defer cancel()
	slot, spec := f.index+len(w.current())*rng.IntN(2), newModelSpec(rng)
	switch n := rng.IntN(100); {
	case n < 10:
		w.sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
	case n < 20:
		w.checkError(ctx, f, "Refresh in a callback", e.Mapping.Refresh(ctx))
	case n < 28:
		_ = e.Mapping.Close()
	case n < 36:
		w.enable(ctx, slot, spec)
	case n < 38:
		w.checkError(ctx, f, "Disable in a callback", f.Disable(ctx, spec.selector()))
	case n < 39 && !w.instant:
		w.shutdown(f, 5*time.Second, false)
		w.replace(f)
	}
}

// byProtocol returns grants sorted by their protocols.
func byProtocol(grants []backends.Mapping) []backends.Mapping {
	return slices.SortedFunc(slices.Values(grants), func(a, b backends.Mapping) int { return int(a.Protocol) - int(b.Protocol) })
}

// grantsText returns grants as text.
func grantsText(grants []backends.Mapping) string {
	var texts []string
	for _, m := range grants {
		texts = append(texts, fmt.Sprintf("%s %v %v → %v", m.Backend, m.Protocol, m.External, m.Internal))
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

// checkError checks the error of a call.
func (w *modelWorld) checkError(ctx context.Context, f *modelForwarder, call string, err error) {
	w.trace("Forwarder %d: %s returned %v", f.index, call, err)
	w.mu.Lock()
	closing := f.closing
	w.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		// The context of another caller that closes the same mapping may have ended.
		if ctx.Err() == nil && !strings.HasPrefix(call, "Close") && !strings.HasPrefix(call, "Disable") {
			w.fail("%s: %v, but its context has not ended", call, err)
		}
	case errors.Is(err, forward.ErrClosed) && (strings.HasPrefix(call, "Refresh") || strings.HasPrefix(call, "Enable")): // the mapping was closed
	case errors.Is(err, forward.ErrClosed) && !closing:
		w.fail("%s: %v, but the Forwarder is open", call, err)
	case !slices.ContainsFunc(modelErrors, func(e error) bool { return errors.Is(err, e) }):
		w.fail("%s: %v", call, err)
	}
}

// modelErrors are the other errors that a call may return.
var modelErrors = []error{
	backends.ErrNoReply, backends.ErrConflict, backends.ErrNotAuthorized, backends.ErrNoResources,
	backends.ErrNetworkFailure, backends.ErrUnsupported, forward.ErrNoGateway, forward.ErrNoMapping, forward.ErrClosed,
}

// modelLogger is a slog handler that is slow sometimes, and resolves the values of the
// records.
type modelLogger struct{ world *modelWorld }

func (l modelLogger) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (l modelLogger) WithAttrs([]slog.Attr) slog.Handler { return l }

func (l modelLogger) WithGroup(string) slog.Handler { return l }

func (l modelLogger) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		a.Value.Resolve()
		return true
	})
	if rng := l.world.randAt(uint64(len(r.Message))); rng.IntN(5) == 0 {
		l.world.sleep(time.Duration(rng.Int64N(int64(20 * time.Millisecond))))
	}
	return nil
}

// TestModelStress performs the operations of the model in real time, while a gateway that
// replies at once is restarted. At the end, mappings and their Forwarders are closed at
// the same time. The test checks the events, and that the gateway has no mappings after
// Shutdown.
func TestModelStress(t *testing.T) {
	// With more threads than processors, each may be preempted at any point.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	const duration = 3 * time.Second
	seed, counts := testseed.Of(t), map[string]int{}
	for start := time.Now(); time.Since(start) < duration && !t.Failed(); seed++ {
		w := &modelWorld{
			t: t, seed: seed, instant: true, counts: counts,
			handles: map[*forward.Mapping]*modelHandle{}, slots: make([]modelSlot, modelSlots),
		}
		w.gateways = []*modelGateway{newModelGateway(w, 0, modelAddrs[0].gateway, modelAddrs[0].local)}
		w.gateways[0].lossPercent = 0
		for i := range 2 {
			w.forwarders = append(w.forwarders, w.newForwarder(i))
		}
		w.stress()
		w.report()
		counts["rounds"]++
	}
	t.Logf("checked: %v", counts)
}

// stress performs operations and restarts the gateway at the same time, then closes
// everything.
func (w *modelWorld) stress() {
	var doing, closing, ending sync.WaitGroup
	for i := range modelActors {
		a := &modelActor{world: w, rng: rand.New(rand.NewPCG(w.seed, uint64(1+i)))}
		doing.Go(func() {
			for range 20 {
				a.step()
			}
		})
	}
	doing.Go(func() {
		g := w.gateways[0]
		for i := range 20 {
			g.restart(i%2 == 0)
			g.set(func() { g.takePort(i) })
			runtime.Gosched()
			g.set(func() { clear(g.taken) })
		}
	})
	doing.Wait()
	w.mu.Lock()
	open := slices.Clone(w.order)
	for _, f := range w.forwarders {
		f.closing = true
	}
	w.mu.Unlock()
	for _, h := range open {
		closing.Go(func() { _ = h.mapping.Close() })
	}
	for _, f := range w.current() {
		ending.Go(func() {
			if err := f.Shutdown(context.Background()); err != nil {
				w.fail("Shutdown of Forwarder %d: %v", f.index, err)
			}
		})
	}
	ending.Wait()
	w.checkEnd() // even if a Mapping.Close has not returned
	closing.Wait()
}
