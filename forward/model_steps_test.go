package forward_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// modelOffset is how long after the begin of a round its steps begin at most.
const modelOffset = 20 * time.Millisecond

// modelSpec is what a call of Enable asks for.
type modelSpec struct {
	protocols                  []backends.Protocol
	port                       uint16
	samePort, once, background bool
	text                       string
	options                    []forward.Option
}

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
	switch rng.IntN(14) { // half of them are equal, and can share an entry
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

func (s *modelSpec) add(text string, o forward.Option) {
	s.text += " " + text
	s.options = append(s.options, o)
}

func (s *modelSpec) String() string { return fmt.Sprintf("%v %d%s", s.protocols, s.port, s.text) }

// selector selects the mappings of the same protocols and port.
func (s *modelSpec) selector() forward.Criterion {
	if len(s.protocols) > 1 {
		return forward.Both(s.port)
	}
	return forward.Protocol(s.protocols[0], s.port)
}

// wants reports whether it may ask for the row of a key.
func (s *modelSpec) wants(k modelKey) bool {
	return slices.Contains(s.protocols, k.protocol) && (s.port == k.internal || s.samePort)
}

// modelActor is a goroutine that does steps.
type modelActor struct {
	world *modelWorld
	rng   *rand.Rand
	start chan struct{}
	busy  atomic.Bool
}

// modelStep is an operation. All of it is drawn before it begins, so that chance
// does not depend on the outcome of earlier operations.
type modelStep struct {
	kind, choice int // below 100
	slot         int
	spec         *modelSpec
	cancel, long time.Duration // its context is cancelled, has a deadline; zero: neither
}

func (a *modelActor) run() {
	for range a.start {
		time.Sleep(1 + time.Duration(a.rng.Int64N(int64(modelOffset))))
		a.step()
		a.busy.Store(false)
	}
}

// step does one operation.
func (a *modelActor) step() {
	s := modelStep{
		kind: a.rng.IntN(100), choice: a.rng.IntN(100), slot: a.rng.IntN(modelSlots), spec: newModelSpec(a.rng),
		cancel: time.Duration(1 + a.rng.Int64N(int64(40*time.Millisecond))), long: time.Duration(1 + a.rng.Int64N(int64(10*time.Second))),
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch n := a.rng.IntN(100); {
	case n < 15:
		defer time.AfterFunc(s.cancel, cancel).Stop()
	case n < 30:
		ctx, cancel = context.WithTimeout(ctx, s.long)
		defer cancel()
	}
	a.world.do(ctx, &s)
}

// do does an operation. One on a handle becomes Enable if there is no handle.
func (w *modelWorld) do(ctx context.Context, s *modelStep) {
	f, h := w.forwarder(s.slot), w.handle(s.slot)
	w.trace("Forwarder %d: operation %d, %d on slot %d, %v", f.index, s.kind, s.choice, s.slot, s.spec)
	switch kind := s.kind; {
	case kind < 20:
		w.doForwarder(ctx, f, s)
	case kind < 23:
		timeout := time.Duration(s.choice) * 200 * time.Millisecond
		if w.instant {
			timeout = time.Hour // what comes after an error is not known
		}
		w.shutdown(f, timeout, s.choice%3 == 0)
		w.replace(f)
	case kind < 28 && f.routed:
		routes := append([]*modelGateway{nil}, f.gateways...)
		f.setRoute(routes[s.choice%len(routes)], s.choice < 80)
	case h == nil:
		w.enable(ctx, s.slot, s.spec)
	case kind < 60:
		w.returned(ctx, f, "Close", h.mapping.Shutdown(ctx))
		w.mu.Lock()
		h.ended = true
		w.mu.Unlock()
	case kind < 85:
		w.refresh(ctx, h, s)
	default:
		_, _, _, _, _ = h.mapping.External(), h.mapping.Internal(), h.mapping.Err(), h.mapping.Expires(), h.mapping.String()
		ctx, cancel := context.WithTimeout(ctx, s.cancel)
		defer cancel()
		_ = h.mapping.Wait(ctx)
	}
}

// doForwarder calls a method of a Forwarder.
func (w *modelWorld) doForwarder(ctx context.Context, f *modelForwarder, s *modelStep) {
	switch choice := s.choice; {
	case choice < 20:
		w.returned(ctx, f, "Disable", f.Disable(ctx, s.spec.selector()))
	case choice < 30:
		_, err := f.DisableAll(ctx, s.spec.selector())
		w.returned(ctx, f, "DisableAll", err)
	case choice < 60:
		w.returned(ctx, f, "Refresh of the last", f.Refresh(ctx))
	case choice < 80:
		_, err := f.ExternalIP(ctx)
		w.returned(ctx, f, "ExternalIP", err)
	default:
		_, err := f.Mappings(ctx)
		w.returned(ctx, f, "Mappings", err)
	}
}

// refresh refreshes a handle, perhaps with other options.
func (w *modelWorld) refresh(ctx context.Context, h *modelHandle, s *modelStep) {
	var opts []forward.Option
	switch choice := s.choice; {
	case choice < 60:
	case choice < 75:
		opts = append(opts, forward.Lifetime(time.Duration(1+choice%10)*5*time.Minute))
	case choice < 90 && !h.spec.samePort: // that excludes External
		opts = append(opts, forward.External(9000+uint16(choice%3)))
	default:
		opts = append(opts, forward.Description("model"))
	}
	if len(opts) > 0 {
		w.mu.Lock()
		h.altered = true
		w.mu.Unlock()
	}
	w.returned(ctx, h.forwarder, fmt.Sprint("Refresh with ", len(opts), " options"), h.mapping.Refresh(ctx, opts...))
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

// enable enables a mapping in a slot that is free.
func (w *modelWorld) enable(ctx context.Context, slot int, spec *modelSpec) {
	if w.handle(slot) != nil || w.instant && spec.once { // whose rows are not known
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
		h := w.note(f, m)
		w.mu.Lock()
		h.spec, s.handle = spec, h
		w.mu.Unlock()
		w.hold(h, m.Grants())
	}
	w.mu.Lock()
	s.enabling = nil
	w.mu.Unlock()
	w.returned(ctx, f, fmt.Sprint("Enable ", spec), err)
}

// hold notes at the rows of a handle that its Forwarder holds them.
func (w *modelWorld) hold(h *modelHandle, grants []backends.Mapping) {
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
			row.once = row.once || once
			if !slices.Contains(row.holders, h.forwarder) {
				row.holders = append(row.holders, h.forwarder)
			}
		})
	}
}

// shutdown closes a Forwarder, by Close or by Shutdown. If that returns nil, the
// gateways have nothing of its mappings at that moment.
func (w *modelWorld) shutdown(f *modelForwarder, timeout time.Duration, byClose bool) {
	w.mu.Lock()
	again := f.closing
	f.closing = true
	var once []*modelHandle
	var held []backends.Mapping
	for _, h := range w.order {
		switch state := h.mapping.Grants(); {
		case h.forwarder != f || h.ended || !h.closed.IsZero() && time.Since(h.closed) > modelClosed: // told before
		case h.spec != nil && h.spec.once:
			once = append(once, h)
		case len(state) > 0:
			held = append(held, state...)
		default:
			held = append(held, h.last.Grants...)
		}
	}
	w.mu.Unlock()
	if again {
		return
	}
	for _, h := range once { // its rows may stay
		w.hold(h, h.mapping.Grants())
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
		w.checkGone(f, held)
		return
	}
	for _, g := range f.gateways { // what remains may stay
		g.set(func() {
			for _, k := range g.keys(time.Now()) {
				row := g.records[k].row
				row.undeleted = true
				row.reported = row.reported || strings.Contains(err.Error(), fmt.Sprintf("%v port %d ", k.protocol, k.internal))
				if !w.openBeside(row.holders, f) {
					row.left = true
				}
			}
		})
	}
}

// openBeside reports whether another of these Forwarders is open.
func (w *modelWorld) openBeside(fs []*modelForwarder, but *modelForwarder) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(fs, func(f *modelForwarder) bool { return f != but && !f.closed })
}

// replace puts a new Forwarder in the place of one that was closed.
func (w *modelWorld) replace(f *modelForwarder) {
	w.mu.Lock()
	again := f.replaced
	f.replaced = true
	w.mu.Unlock()
	if again {
		return
	}
	next := w.newForwarder(f.index)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forwarders[f.index] = next
}
