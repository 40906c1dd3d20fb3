package forward_test

import (
	"errors"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// How long a difference between what handles report and what gateways have is
// allowed. In a calm, none is.
const (
	// modelRepair is how long a handle may report what its gateway lost without an
	// announcement, after the next renewal is due and the gateway answers. A refusal
	// is followed by a pause of 17 minutes at most.
	modelRepair = 20 * time.Minute
	// modelDelete is how long a gateway that answers may have a row that no handle
	// wants: a deletion is repeated after a minute at most, and takes RequestTimeout.
	modelDelete = 90 * time.Second
	// modelLate is how long an answer that arrived after an announcement, and was
	// given before it, may be believed.
	modelLate = 30 * time.Second
	// modelKept is how long a closed handle is remembered for the Shutdown of its
	// Forwarder.
	modelKept   = 10 * time.Minute
	modelClosed = 15 * time.Second // how long Close takes at most
)

// check compares what the handles report with their events and with the gateways.
// In a calm, it is strict.
func (w *modelWorld) check(strict bool) {
	w.forget()
	w.count("checks")
	reported := map[*modelGateway]map[modelKey]backends.Mapping{}
	units := map[modelKey]bool{} // keys that handles of two protocols hold
	for _, h := range w.open() {
		if state := h.mapping.Grants(); len(state) > 1 {
			for _, m := range state {
				units[keyOf(m)] = true
			}
		}
	}
	for _, g := range w.gateways {
		reported[g] = map[modelKey]backends.Mapping{}
	}
	for _, h := range w.open() {
		state := h.mapping.Grants()
		w.count("reports")
		w.checkHandle(h, state, strict)
		w.checkEvent(h, state, strict)
		w.hold(h, state)
		for _, m := range state {
			g := w.gateway(m)
			if other, has := reported[g][keyOf(m)]; has {
				w.count("shared entries")
				if other.External != m.External && (strict || len(state) == 1 && !units[keyOf(m)]) { // a unit is told when both of its protocols are renewed
					w.fail("two handles report %v and %v of one entry, %v %v", other.External, m.External, m.Protocol, m.Internal)
				}
			}
			reported[g][keyOf(m)] = m
			w.checkGrant(h, g, m, strict)
		}
	}
	for _, g := range w.gateways {
		w.checkRows(g, reported[g], strict)
	}
}

// forget forgets handles that were closed some time ago.
func (w *modelWorld) forget() {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order = slices.DeleteFunc(w.order, func(h *modelHandle) bool {
		if h.closed.IsZero() && (h.forwarder.closed || h.isClosed()) {
			h.closed = now
		}
		if h.closed.IsZero() || now.Sub(h.closed) < modelKept {
			return false
		}
		delete(w.handles, h.mapping)
		return true
	})
}

// open returns the handles that are open and whose Enable has returned.
func (w *modelWorld) open() []*modelHandle {
	w.mu.Lock()
	defer w.mu.Unlock()
	var open []*modelHandle
	for _, h := range w.order {
		if h.spec != nil && h.closed.IsZero() && !h.forwarder.closing {
			open = append(open, h)
		}
	}
	return open
}

// checkHandle checks what a handle reports in itself.
func (w *modelWorld) checkHandle(h *modelHandle, state []backends.Mapping, strict bool) {
	if len(state) == 0 {
		if err := h.mapping.Err(); strict && !h.spec.once && !errors.Is(err, backends.ErrConflict) {
			w.fail("%v: not mapped: %v", h, err)
		}
		return
	}
	now, first := time.Now(), state[0]
	text := grantsText(state)
	if len(state) != len(h.spec.protocols) {
		w.fail("%v: State has %d mappings: %s", h, len(state), text)
	}
	for _, m := range state {
		if at := m.Expires(); !at.IsZero() && !now.Before(at) {
			w.fail("%v: State reports what expired at %v: %s", h, at, text)
		}
		if m.External.Port() != first.External.Port() || h.spec.samePort && m.External.Port() != m.Internal.Port() {
			w.fail("%v: State reports another port than was asked for: %s", h, text)
		}
	}
	if h.mapping.External().AddrPort != first.External || h.mapping.Gateway() != first.Gateway {
		w.fail("%v: External is %v and Gateway %v, State %s", h, h.mapping.External(), h.mapping.Gateway(), text)
	}
	if f := h.forwarder; strict && f.routed && !h.spec.once && w.gateway(first) != f.route.Load() {
		w.fail("%v: the route leads to %v, State %s", h, f.route.Load(), text)
	}
}

// checkEvent checks that the last event of a handle reported what State reports.
func (w *modelWorld) checkEvent(h *modelHandle, state []backends.Mapping, strict bool) {
	w.mu.Lock()
	last := h.last
	w.mu.Unlock()
	switch {
	case sameGrants(last.Grants, byProtocol(state)), h.forwarder.callbacks.Load() > 0:
	case len(state) == 0 && !strict && (w.expired(last.Grants) || w.awaitsPort(h, last.Grants)):
	case len(state) == 0 && h.spec != nil && h.spec.once: // that it ran out is no event
	default:
		w.fail("%v: the last event, %v, reports %s, State %s", h, last.Kind, grantsText(last.Grants), grantsText(state))
	}
}

// expired reports whether one of the grants may have expired just now, so that the
// event is to come.
func (w *modelWorld) expired(grants []backends.Mapping) bool {
	return slices.ContainsFunc(grants, func(m backends.Mapping) (expired bool) {
		g := w.gateway(m)
		g.set(func() {
			r := g.record(keyOf(m))
			expired = r.inFlight > 0 || r.uncertain || r.live(time.Now()) == nil
		})
		return expired
	})
}

// awaitsPort reports whether a request about the internal port of a grant is in flight,
// whatever its protocol: what is due comes after it.
func (w *modelWorld) awaitsPort(h *modelHandle, grants []backends.Mapping) bool {
	return w.inFlight(h, func(k modelKey) bool {
		return slices.ContainsFunc(grants, func(m backends.Mapping) bool { return m.Internal.Port() == k.internal })
	})
}

// checkGrant checks that a gateway has what a handle reports.
func (w *modelWorld) checkGrant(h *modelHandle, g *modelGateway, m backends.Mapping, strict bool) {
	busy := w.busy(h)
	g.mu.Lock()
	defer g.mu.Unlock()
	now, r := time.Now(), g.record(keyOf(m))
	row := r.live(now)
	switch {
	case row != nil && m.External.Port() == row.external && m.External.Addr() == g.external:
	case h.spec.once:
	case !strict && (busy || g.excused(h, r, m, now)):
	default:
		w.fail("%v: State reports %s, %v at %v has %v", h, grantsText([]backends.Mapping{m}), g, g.external, r)
	}
}

// busy reports whether a request about a handle is in flight.
func (w *modelWorld) busy(h *modelHandle) bool { return w.inFlight(h, h.spec.wants) }

// inFlight reports whether a request about one of these keys is in flight at a gateway of a
// handle. Ready-made backends that one Forwarder uses have one owner, which renews a port at
// one after the other.
func (w *modelWorld) inFlight(h *modelHandle, is func(modelKey) bool) (found bool) {
	for _, g := range w.gateways {
		if !slices.Contains(h.forwarder.gateways, g) && (h.forwarder.routed || g.index >= modelReady) {
			continue
		}
		g.set(func() {
			for k, r := range g.records {
				found = found || r.inFlight > 0 && is(k)
			}
		})
	}
	return found
}

// excused reports whether a handle cannot know yet that a grant does not stand as it
// was. g.mu is held.
func (g *modelGateway) excused(h *modelHandle, r *modelRecord, m backends.Mapping, now time.Time) bool {
	switch {
	case r.uncertain || r.untold:
		return true
	case r.stale.IsZero() || m.Granted.After(r.stale):
		return false
	case r.announced:
		return now.Sub(g.told) < modelLate && g.late(h)
	}
	lifetime := min(m.Lifetime, time.Hour)
	return now.Before(latest(r.stale, g.sound(r, now)).Add(lifetime/2 + lifetime/8 + modelRepair))
}

// late reports whether an answer about a handle arrived after the last announcement.
// g.mu is held.
func (g *modelGateway) late(h *modelHandle) bool {
	for k, r := range g.records {
		if h.spec.wants(k) && r.delivered.After(g.told) {
			return true
		}
	}
	return false
}

// checkRows checks that a gateway has nothing that no handle reports, except for what
// is still to be deleted or to be granted again.
func (w *modelWorld) checkRows(g *modelGateway, reported map[modelKey]backends.Mapping, strict bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	switch {
	case len(reported) == 0:
		g.active = time.Time{}
	case g.active.IsZero():
		g.active = now
	}
	for _, k := range g.keys(now) {
		r := g.records[k]
		_, has := reported[k]
		switch {
		case has || r.row.left || r.row.once || r.inFlight > 0 || w.wanted(g, k, strict) || g.leftWith(r):
			r.row.orphan = time.Time{}
			continue
		case r.row.orphan.IsZero():
			r.row.orphan = now
		}
		if strict || !g.mayKeep(r, now) {
			w.fail("no handle reports %v %d, and %v has %v", k.protocol, k.internal, g, r)
		}
	}
}

// mayKeep reports whether a row that no handle wants may still wait for its deletion.
// g.mu is held.
func (g *modelGateway) mayKeep(r *modelRecord, now time.Time) bool {
	switch {
	case r.uncertain && !r.row.known.IsZero() && now.After(r.row.known):
		return true // only the gateway knows that it was renewed
	}
	return now.Before(latest(latest(r.row.orphan, g.active), g.sound(r, now)).Add(modelDelete))
}

// leftWith reports whether no Forwarder uses a gateway of a default route, and it did not
// answer the last request about a row: that may stay until a Forwarder uses the gateway
// again. g.mu is held.
func (g *modelGateway) leftWith(r *modelRecord) bool {
	return g.index >= modelReady && g.active.IsZero() && (r.row.undeleted || r.uncertain)
}

// wanted reports whether an open handle, or an Enable, may ask for a key. In a calm,
// only a handle may that conflicts with another one.
func (w *modelWorld) wanted(g *modelGateway, k modelKey, strict bool) bool {
	if len(w.enabling(g, k)) > 0 {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.order, func(h *modelHandle) bool {
		return h.closed.IsZero() && !h.forwarder.closing && (h.spec == nil || h.spec.wants(k)) && slices.Contains(h.forwarder.gateways, g) &&
			(!strict || errors.Is(h.mapping.Err(), backends.ErrConflict))
	})
}

// wantedOnce reports whether an open handle that is not renewed may share a key.
func (w *modelWorld) wantedOnce(g *modelGateway, k modelKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.order, func(h *modelHandle) bool {
		return h.closed.IsZero() && h.spec != nil && h.spec.once && h.spec.wants(k) && slices.Contains(h.forwarder.gateways, g)
	})
}

// enabling returns the Forwarders with an Enable in progress that may ask a gateway for a
// key.
func (w *modelWorld) enabling(g *modelGateway, k modelKey) (out []*modelForwarder) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, s := range w.slots {
		f := w.forwarders[i%len(w.forwarders)]
		if s.enabling != nil && s.enabling.wants(k) && slices.Contains(f.gateways, g) {
			out = append(out, f)
		}
	}
	return out
}

// checkSharing enables what a handle holds once more on another Forwarder: with equal
// options they share the entry, with others they conflict.
func (w *modelWorld) checkSharing() {
	i := slices.IndexFunc(w.open(), func(h *modelHandle) bool {
		s := h.spec
		return h.forwarder.index < 2 && len(h.mapping.Grants()) == 1 && !h.altered && !s.once && !s.samePort && !s.background
	})
	if i < 0 {
		return
	}
	h := w.open()[i]
	f, want := w.current()[1-h.forwarder.index], h.mapping.External()
	w.count("sharing")
	if _, err := f.Enable(w.t.Context(), h.spec.selector(), forward.Lifetime(11*time.Minute)); !errors.Is(err, backends.ErrConflict) {
		w.fail("%v: another Enable with another lifetime returned %v", h, err)
	}
	twin, err := f.Enable(w.t.Context(), h.spec.options...)
	if err != nil {
		w.fail("%v: another Enable returned %v", h, err)
		return
	}
	if got := twin.External(); got != want {
		w.fail("%v: another Enable was granted %v", h, got)
	}
	if err := twin.Close(); err != nil {
		w.fail("%v: Close of another handle returned %v", h, err)
	}
	time.Sleep(time.Minute)
	w.settle()
	w.check(true)
}

// checkGone checks that the gateways have nothing of a Forwarder whose Shutdown
// returned nil just now.
func (w *modelWorld) checkGone(f *modelForwarder, held []backends.Mapping) {
	for _, m := range held {
		g, k := w.gateway(m), keyOf(m)
		if w.wanted(g, k, false) {
			continue
		}
		g.set(func() {
			r := g.record(k)
			row := r.live(time.Now())
			switch {
			case row == nil || row.left || row.once || g.leftWith(r):
			case r.inFlight > 0 || r.uncertain: // another Forwarder took it, which now answers for it
			case w.openBeside(row.holders, f) || w.openBeside(row.makers, f) || w.closingBeside(g, k, f):
			case row.reported && w.openBeside(w.usersOf(g), f): // one of these answers for it
			default:
				w.fail("Shutdown of Forwarder %d returned nil, and %v still has %v %d", f.index, g, k.protocol, k.internal)
			}
		})
	}
}

// usersOf returns the Forwarders that may use a gateway.
func (w *modelWorld) usersOf(g *modelGateway) (out []*modelForwarder) {
	for _, f := range w.current() {
		if slices.Contains(f.gateways, g) {
			out = append(out, f)
		}
	}
	return out
}

// closingBeside reports whether another Forwarder may be closing a handle for a key.
func (w *modelWorld) closingBeside(g *modelGateway, k modelKey, but *modelForwarder) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.order, func(h *modelHandle) bool {
		return h.forwarder != but && !h.forwarder.closed && !h.ended && (h.closed.IsZero() || time.Since(h.closed) < modelClosed) &&
			(h.spec == nil || h.spec.wants(k)) && slices.Contains(h.forwarder.gateways, g)
	})
}

// checkEnd checks that the gateways have nothing when everything is closed.
func (w *modelWorld) checkEnd() {
	for _, g := range w.gateways {
		g.set(func() {
			for _, k := range g.keys(time.Now()) {
				if r := g.records[k]; !r.row.left && !r.row.once && !g.leftWith(r) {
					w.fail("all Forwarders are closed, and %v has %v %d, %v", g, k.protocol, k.internal, r)
				}
			}
		})
	}
}
