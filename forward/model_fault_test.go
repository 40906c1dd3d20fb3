package forward_test

import (
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// fault makes something happen at one gateway, most of it for a while.
func (w *modelWorld) fault() {
	g, kind := w.gateways[w.rng.IntN(len(w.gateways))], w.rng.IntN(16)
	lasts := w.upTo([]time.Duration{time.Second, 20 * time.Second, 5 * time.Minute}[w.rng.IntN(3)])
	until := time.Now().Add(lasts)
	refusal := []error{backends.ErrNotAuthorized, backends.ErrNoResources, backends.ErrNetworkFailure, backends.ErrConflict}[w.rng.IntN(4)]
	address, pick := modelExternal(g.index, w.rng.IntN(5)), w.rng.IntN(100)
	w.trace("%v: fault %d for %v, refusal %v, address %v, pick %d", g, kind, lasts, refusal, address, pick)
	switch kind {
	case 0, 1:
		g.set(func() { g.silent = until })
	case 2:
		g.set(func() { g.mute = until })
	case 3, 4:
		g.set(func() { g.refuses, g.refusal = until, refusal })
	case 5, 6:
		g.restart(true)
	case 7:
		g.restart(false)
	case 8: // the announcement comes late
		g.restart(false)
		since := time.Now()
		time.Sleep(min(lasts, 30*time.Second))
		g.set(func() { g.announceRestart(since) })
	case 9:
		g.readdress(address, pick < 50)
	case 10, 11:
		g.set(func() { g.take(pick) })
	case 12:
		g.set(func() { clear(g.taken) })
	case 13:
		g.set(func() { g.drop(pick) })
	case 14:
		g.set(func() { g.limit = time.Duration(pick%3) * 90 * time.Second })
	case 15:
		g.set(func() { g.keeps = time.Now().Add(min(lasts, time.Second)) })
	}
}

// heal ends all faults.
func (g *modelGateway) heal() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for _, until := range []*time.Time{&g.silent, &g.mute, &g.refuses, &g.keeps} {
		if until.After(now) {
			*until = now
		}
	}
	g.limit, g.loss = 0, 0
}

// sound returns since when the gateway answers requests about a key; now, if it does
// not. g.mu is held.
func (g *modelGateway) sound(r *modelRecord, now time.Time) time.Time {
	since := r.unanswered
	for _, until := range []time.Time{g.silent, g.mute, g.refuses} {
		if until.After(now) {
			return now
		}
		since = latest(since, until)
	}
	return since
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// spoil notes that the gateway changed a row without a request. g.mu is held.
func (r *modelRecord) spoil() { r.stale, r.announced = time.Now(), false }

// restart makes the gateway forget all rows.
func (g *modelGateway) restart(loud bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.records {
		r.row = nil
		r.spoil()
	}
	if loud {
		g.announceRestart(time.Now())
	}
}

// announceRestart announces that rows were lost at a time. g.mu is held.
func (g *modelGateway) announceRestart(since time.Time) {
	g.told = time.Now()
	for _, r := range g.records {
		if !r.stale.After(since) {
			r.announced = len(g.watchers) > 0
		}
	}
	g.announce(backends.Change{Kind: backends.Restarted, Since: since})
}

// announce tells all watchers of a change. g.mu is held.
func (g *modelGateway) announce(c backends.Change) {
	c.Reason = "the model"
	for _, w := range g.watchers {
		w <- c
	}
}

// readdress gives the gateway another external address.
func (g *modelGateway) readdress(to netip.Addr, loud bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.external = to
	for _, r := range g.records {
		r.spoil()
	}
	if loud {
		g.announce(backends.Change{Kind: backends.AddressChanged, External: to})
	}
}

// take gives the external port of one row to another host at the next renewal. g.mu
// is held.
func (g *modelGateway) take(pick int) {
	if keys := g.keys(time.Now()); len(keys) > 0 {
		g.taken[g.records[keys[pick%len(keys)]].row.external] = true
	}
}

// drop deletes one row. g.mu is held.
func (g *modelGateway) drop(pick int) {
	if keys := g.keys(time.Now()); len(keys) > 0 {
		r := g.records[keys[pick%len(keys)]]
		r.row = nil
		r.spoil()
	}
}
