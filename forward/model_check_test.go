package forward_test

import (
	"errors"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// How long the reports of handles and the rows of gateways may differ. In a quiet period,
// no difference is allowed.
const (
	// modelRepairTime is how long a handle may report a mapping that its gateway lost
	// without an announcement, after the next renewal is due and the gateway replies. The
	// pause after a refusal is 17 minutes at most.
	modelRepairTime = 20 * time.Minute
	// modelDeleteTime is how long a gateway that replies may have a row that no handle
	// requests. A deletion is retried after one minute at most, and takes RequestTimeout.
	modelDeleteTime = 90 * time.Second
	// modelLateReply is how long a handle may report a reply that was sent before an
	// announcement and arrived after it.
	modelLateReply = 30 * time.Second
	// modelKeepClosed is how long a closed handle is remembered for the Shutdown of its
	// Forwarder.
	modelKeepClosed = 10 * time.Minute
	modelCloseTime  = 15 * time.Second // longest duration of Close
)

// check compares the reports of the handles with their events and with the gateways. In a
// quiet period, strict is set.
func (w *modelWorld) check(strict bool) {
	w.forgetClosed()
	w.count("checks")
	reported := map[*modelGateway]map[modelKey]backends.Mapping{}
	units := map[modelKey]bool{} // keys of handles with two protocols
	for _, h := range w.openHandles() {
		if state := h.mapping.Grants(); len(state) > 1 {
			for _, m := range state {
				units[keyOf(m)] = true
			}
		}
	}
	for _, g := range w.gateways {
		reported[g] = map[modelKey]backends.Mapping{}
	}
	for _, h := range w.openHandles() {
		state := h.mapping.Grants()
		w.count("reports")
		w.checkHandle(h, state, strict)
		w.checkEvent(h, state, strict)
		w.noteHolder(h, state)
		for _, m := range state {
			g := w.gateway(m)
			if other, found := reported[g][keyOf(m)]; found {
				w.count("shared entries")
				if other.External != m.External && (strict || len(state) == 1 && !units[keyOf(m)]) { // a handle with two protocols reports a change when both are renewed
					w.fail("two handles report %v and %v for one entry, %v %v", other.External, m.External, m.Protocol, m.Internal)
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

// forgetClosed forgets handles that were closed some time ago.
func (w *modelWorld) forgetClosed() {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order = slices.DeleteFunc(w.order, func(h *modelHandle) bool {
		if h.closedAt.IsZero() && (h.forwarder.closed || h.isClosed()) {
			h.closedAt = now
		}
		if h.closedAt.IsZero() || now.Sub(h.closedAt) < modelKeepClosed {
			return false
		}
		delete(w.handles, h.mapping)
		return true
	})
}

// openHandles returns the handles that are open and whose Enable has returned.
func (w *modelWorld) openHandles() []*modelHandle {
	w.mu.Lock()
	defer w.mu.Unlock()
	var open []*modelHandle
	for _, h := range w.order {
		if h.spec != nil && h.closedAt.IsZero() && !h.forwarder.closing {
			open = append(open, h)
		}
	}
	return open
}

// checkHandle checks that the report of a handle is consistent in itself.
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
		w.fail("%v: Grants has %d mappings: %s", h, len(state), text)
	}
	for _, m := range state {
		if expires := m.Expires(); !expires.IsZero() && !now.Before(expires) {
			w.fail("%v: Grants reports a mapping that expired at %v: %s", h, expires, text)
		}
		if m.External.Port() != first.External.Port() || h.spec.samePort && m.External.Port() != m.Internal.Port() {
			w.fail("%v: Grants reports another port than requested: %s", h, text)
		}
	}
	if h.mapping.External().AddrPort != first.External || h.mapping.Gateway() != first.Gateway {
		w.fail("%v: External is %v and Gateway %v, but Grants is %s", h, h.mapping.External(), h.mapping.Gateway(), text)
	}
	if f := h.forwarder; strict && f.usesRoute && !h.spec.once && w.gateway(first) != f.route.Load() {
		w.fail("%v: the gateway of the default route is %v, but Grants is %s", h, f.route.Load(), text)
	}
}

// checkEvent checks that the last event of a handle reported the same grants as the
// handle.
func (w *modelWorld) checkEvent(h *modelHandle, state []backends.Mapping, strict bool) {
	w.mu.Lock()
	last := h.lastEvent
	w.mu.Unlock()
	switch {
	case sameGrants(last.Grants, byProtocol(state)), h.forwarder.activeCallbacks.Load() > 0:
	case len(state) == 0 && !strict && (w.mayHaveExpired(last.Grants) || w.awaitsPort(h, last.Grants)):
	case len(state) == 0 && h.spec != nil && h.spec.once: // the expiry of a mapping with Once causes no event
	default:
		w.fail("%v: the last event, %v, reports %s, but Grants is %s", h, last.Kind, grantsText(last.Grants), grantsText(state))
	}
}

// mayHaveExpired reports whether one of the grants may have expired just now, so that the
// event is still to be sent.
func (w *modelWorld) mayHaveExpired(grants []backends.Mapping) bool {
	return slices.ContainsFunc(grants, func(m backends.Mapping) (expired bool) {
		g := w.gateway(m)
		g.set(func() {
			r := g.record(keyOf(m))
			expired = r.inFlight > 0 || r.unconfirmed || r.live(time.Now()) == nil
		})
		return expired
	})
}

// awaitsPort reports whether a request for the internal port of a grant is in flight,
// with any protocol. Later requests wait for it.
func (w *modelWorld) awaitsPort(h *modelHandle, grants []backends.Mapping) bool {
	return w.inFlight(h, func(k modelKey) bool {
		return slices.ContainsFunc(grants, func(m backends.Mapping) bool { return m.Internal.Port() == k.internal })
	})
}

// checkGrant checks that the gateway has the mapping that a handle reports.
func (w *modelWorld) checkGrant(h *modelHandle, g *modelGateway, m backends.Mapping, strict bool) {
	busy := w.busy(h)
	g.mu.Lock()
	defer g.mu.Unlock()
	now, r := time.Now(), g.record(keyOf(m))
	row := r.live(now)
	switch {
	case row != nil && m.External.Port() == row.external && m.External.Addr() == g.external:
	case h.spec.once:
	case !strict && (busy || g.mayDiffer(h, r, m, now)):
	default:
		w.fail("%v: Grants reports %s, but %v at %v has %v", h, grantsText([]backends.Mapping{m}), g, g.external, r)
	}
}

// busy reports whether a request for a handle is in flight.
func (w *modelWorld) busy(h *modelHandle) bool { return w.inFlight(h, h.spec.mayRequest) }

// inFlight reports whether a request for a matching key is in flight at a gateway of a
// handle. The ready-made backends of one Forwarder share an owner, which renews a port at
// one backend after the other.
func (w *modelWorld) inFlight(h *modelHandle, match func(modelKey) bool) (found bool) {
	for _, g := range w.gateways {
		if !slices.Contains(h.forwarder.gateways, g) && (h.forwarder.usesRoute || g.index >= modelReadyMade) {
			continue
		}
		g.set(func() {
			for k, r := range g.records {
				found = found || r.inFlight > 0 && match(k)
			}
		})
	}
	return found
}

// mayDiffer reports whether a handle cannot know yet that the gateway changed the
// mapping. g.mu is held.
func (g *modelGateway) mayDiffer(h *modelHandle, r *modelRecord, m backends.Mapping, now time.Time) bool {
	switch {
	case r.unconfirmed || r.portUnconfirmed:
		return true
	case r.changedAt.IsZero() || m.Granted.After(r.changedAt):
		return false
	case r.announced:
		return now.Sub(g.announcedAt) < modelLateReply && g.lateReply(h)
	}
	lifetime := min(m.Lifetime, time.Hour)
	return now.Before(later(r.changedAt, g.answeringSince(r, now)).Add(lifetime/2 + lifetime/8 + modelRepairTime))
}

// lateReply reports whether a reply for a handle arrived after the last announcement.
// g.mu is held.
func (g *modelGateway) lateReply(h *modelHandle) bool {
	for k, r := range g.records {
		if h.spec.mayRequest(k) && r.lastReply.After(g.announcedAt) {
			return true
		}
	}
	return false
}

// checkRows checks that a gateway has no rows that no handle reports, except for rows
// that are still to be deleted or requested again.
func (w *modelWorld) checkRows(g *modelGateway, reported map[modelKey]backends.Mapping, strict bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	switch {
	case len(reported) == 0:
		g.inUseSince = time.Time{}
	case g.inUseSince.IsZero():
		g.inUseSince = now
	}
	for _, k := range g.keys(now) {
		r := g.records[k]
		_, found := reported[k]
		switch {
		case found || r.row.mayRemain || r.row.heldByOnce || r.inFlight > 0 || w.isRequested(g, k, strict) || g.leftOnOldRoute(r):
			r.row.unrequestedSince = time.Time{}
			continue
		case r.row.unrequestedSince.IsZero():
			r.row.unrequestedSince = now
		}
		if strict || !g.mayRemain(r, now) {
			w.fail("no handle reports %v %d, but %v has %v", k.protocol, k.internal, g, r)
		}
	}
}

// mayRemain reports whether a row that no handle requests may still wait for its deletion.
// g.mu is held.
func (g *modelGateway) mayRemain(r *modelRecord, now time.Time) bool {
	switch {
	case r.unconfirmed && !r.row.knownUntil.IsZero() && now.After(r.row.knownUntil):
		return true // the reply to its renewal was lost, so only the gateway knows the expiry
	}
	return now.Before(later(later(r.row.unrequestedSince, g.inUseSince), g.answeringSince(r, now)).Add(modelDeleteTime))
}

// leftOnOldRoute reports whether no Forwarder uses a gateway of a default route, and the
// last request for a row got no reply. Such a row may remain until a Forwarder uses the
// gateway again. g.mu is held.
func (g *modelGateway) leftOnOldRoute(r *modelRecord) bool {
	return g.index >= modelReadyMade && g.inUseSince.IsZero() && (r.row.deleteUnanswered || r.unconfirmed)
}

// isRequested reports whether an open handle, or an Enable in progress, may request a key. In
// a quiet period, only a handle that conflicts with another one may do so.
func (w *modelWorld) isRequested(g *modelGateway, k modelKey, strict bool) bool {
	if len(w.enabling(g, k)) > 0 {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.order, func(h *modelHandle) bool {
		return h.closedAt.IsZero() && !h.forwarder.closing && (h.spec == nil || h.spec.mayRequest(k)) && slices.Contains(h.forwarder.gateways, g) &&
			(!strict || errors.Is(h.mapping.Err(), backends.ErrConflict))
	})
}

// isRequestedOnce reports whether an open handle with Once may share a key.
func (w *modelWorld) isRequestedOnce(g *modelGateway, k modelKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.order, func(h *modelHandle) bool {
		return h.closedAt.IsZero() && h.spec != nil && h.spec.once && h.spec.mayRequest(k) && slices.Contains(h.forwarder.gateways, g)
	})
}

// enabling returns the Forwarders with an Enable in progress that may request a key at a
// gateway.
func (w *modelWorld) enabling(g *modelGateway, k modelKey) (out []*modelForwarder) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, s := range w.slots {
		f := w.forwarders[i%len(w.forwarders)]
		if s.enabling != nil && s.enabling.mayRequest(k) && slices.Contains(f.gateways, g) {
			out = append(out, f)
		}
	}
	return out
}

// checkSharing enables the mapping of a handle again on another Forwarder. With equal
// options, the handles share the entry. With other options, they conflict.
func (w *modelWorld) checkSharing() {
	i := slices.IndexFunc(w.openHandles(), func(h *modelHandle) bool {
		s := h.spec
		return h.forwarder.index < 2 && len(h.mapping.Grants()) == 1 && !h.optionsChanged && !s.once && !s.samePort && !s.background
	})
	if i < 0 {
		return
	}
	h := w.openHandles()[i]
	f, want := w.current()[1-h.forwarder.index], h.mapping.External()
	w.count("sharing")
	if _, err := f.Enable(w.t.Context(), h.spec.selector(), forward.Lifetime(11*time.Minute)); !errors.Is(err, backends.ErrConflict) {
		w.fail("%v: another Enable with another lifetime returned %v", h, err)
	}
	second, err := f.Enable(w.t.Context(), h.spec.options...)
	if err != nil {
		w.fail("%v: another Enable returned %v", h, err)
		return
	}
	if endpoint := second.External(); endpoint != want {
		w.fail("%v: another Enable was granted %v", h, endpoint)
	}
	if err := second.Close(); err != nil {
		w.fail("%v: Close of another handle returned %v", h, err)
	}
	time.Sleep(time.Minute)
	w.settle()
	w.check(true)
}

// checkDeleted checks that the gateways have none of the mappings of a Forwarder whose
// Shutdown has just returned nil.
func (w *modelWorld) checkDeleted(f *modelForwarder, held []backends.Mapping) {
	for _, m := range held {
		g, k := w.gateway(m), keyOf(m)
		if w.isRequested(g, k, false) {
			continue
		}
		g.set(func() {
			r := g.record(k)
			row := r.live(time.Now())
			switch {
			case row == nil || row.mayRemain || row.heldByOnce || g.leftOnOldRoute(r):
			case r.inFlight > 0 || r.unconfirmed: // another Forwarder took it over and has to delete it
			case w.otherOpen(row.holders, f) || w.otherOpen(row.requesters, f) || w.otherClosing(g, k, f):
			case row.inCloseError && w.otherOpen(w.usersOf(g), f): // one of these Forwarders has to delete it
			default:
				w.fail("Shutdown of Forwarder %d returned nil, but %v still has %v %d", f.index, g, k.protocol, k.internal)
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

// otherClosing reports whether another Forwarder may be closing a handle for a key.
func (w *modelWorld) otherClosing(g *modelGateway, k modelKey, except *modelForwarder) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.order, func(h *modelHandle) bool {
		return h.forwarder != except && !h.forwarder.closed && !h.closeReturned && (h.closedAt.IsZero() || time.Since(h.closedAt) < modelCloseTime) &&
			(h.spec == nil || h.spec.mayRequest(k)) && slices.Contains(h.forwarder.gateways, g)
	})
}

// checkEnd checks that the gateways have no rows after everything is closed.
func (w *modelWorld) checkEnd() {
	for _, g := range w.gateways {
		g.set(func() {
			for _, k := range g.keys(time.Now()) {
				if r := g.records[k]; !r.row.mayRemain && !r.row.heldByOnce && !g.leftOnOldRoute(r) {
					w.fail("all Forwarders are closed, but %v has %v %d, %v", g, k.protocol, k.internal, r)
				}
			}
		})
	}
}
