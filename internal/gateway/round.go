package gateway

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/errno"
)

// The timing of a round of probes. The requests of all backends without a search are sent at
// once. A search takes long and therefore starts after searchDelay. It does not start at once,
// because common gateways process one request at a time: if the search came first, their
// replies to the other requests would be late.
//
// If a backend has replied, the more preferred ones have a limited time to reply too. Once the
// round-trip time of the gateway is known, that time is short (preferenceTime). The request of
// each backend is repeated once within that time, because packets get lost.
const (
	searchDelay   = 25 * time.Millisecond
	repeatDelay   = 25 * time.Millisecond // before a request is repeated, at most
	minPreference = 10 * time.Millisecond
	maxPreference = 250 * time.Millisecond
	roundTrips    = 6 // the number of round trips within which a preferred backend must reply
	// directPreference replaces maxPreference if only a backend is available that needs no
	// gateway.
	directPreference = 200 * time.Millisecond
	// lateTime is how long the probe of a preferred backend continues after another backend
	// was chosen, counted from its start. After that, the request would be sent a third time.
	lateTime = 400 * time.Millisecond

	// searchTime is how long a round waits for a search if the gateway refuses everything. It
	// allows for devices that respond within a second.
	searchTime = 1200 * time.Millisecond
	// foundDeviceTime is for a device that has responded to the search by then, but not yet to
	// the requests that follow.
	foundDeviceTime = 250 * time.Millisecond
)

// preferenceTime returns how long a preferred backend may remain silent after its request. The
// round-trip time of the gateway is 0 if it is unknown.
func preferenceTime(roundTrip time.Duration) time.Duration {
	return min(max(minPreference, roundTrips*roundTrip), maxPreference)
}

// probeRound is one round of probes of several backends. Only one goroutine uses it, except
// for the channels.
type probeRound struct {
	ctx       context.Context //nolint:containedctx // bounds the round; the probes use it
	backends  []*Backend      // the preferred one first
	order     []int           // indices of backends: the remembered one, then the others by preference
	firstTime time.Duration   // how long only the first of order is asked; 0: all are asked
	wait      time.Duration   // the timeout of ctx
	start     time.Time
	othersAsk bool // not only the first of order is asked
	roundTrip time.Duration
	found     time.Time // when a backend became available; the zero Time if there is none
	probes    []backendProbe
	errs      []error  // by backend: nil if it is available, errNotProbed, or why it is not
	running   int      // the number of probes in progress
	sent      chan int // the indices of backends whose request was transmitted
	replies   chan probeReplyTime
	results   chan probeResult
}

// backendProbe is the probe of one backend in a round.
type backendProbe struct {
	at       time.Time // the time of its start; the zero Time if it has not started
	stop     context.CancelCauseFunc
	repeat   chan struct{} // closed to repeat the request
	repeated time.Time     // when the request was repeated; the zero Time if it was not
	delayed  time.Time     // when the round found that this process was delayed; the zero Time if it did not
	heard    bool          // the gateway has replied to a part of it
	late     bool          // it continues although another backend was chosen
}

// probeReplyTime is the round-trip time of a part of a probe.
type probeReplyTime struct {
	index     int
	roundTrip time.Duration
}

type probeResult struct {
	index int
	err   error
}

// newProbeRound returns a round. If first is not negative, it is the index of the backend that
// is asked before the others, and roundTrip is the expected round-trip time, or 0.
func newProbeRound(ctx context.Context, bs []*Backend, first int, roundTrip, wait time.Duration) *probeRound {
	const maxReplies = 8 // further ones are dropped
	r := &probeRound{
		ctx: ctx, backends: bs, wait: wait, start: time.Now(), othersAsk: first < 0,
		probes: make([]backendProbe, len(bs)), errs: slices.Repeat([]error{errNotProbed}, len(bs)),
		sent: make(chan int, len(bs)), replies: make(chan probeReplyTime, maxReplies), results: make(chan probeResult, len(bs)),
	}
	for i := range bs {
		r.order = append(r.order, i)
	}
	if first >= 0 {
		r.order = slices.Insert(slices.Delete(r.order, first, first+1), 0, first)
		r.firstTime = preferenceTime(roundTrip)
	}
	return r
}

// run probes the backends and sets errs. It returns as soon as no backend that comes earlier
// in the order can win over one that has replied. Backends without a result then have
// errNotProbed. If none has replied, each has its own error. Probes of preferred backends may
// continue: see awaitLate.
func (r *probeRound) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for done := r.ctx.Done(); ; {
		now, next := time.Now(), time.Time{}
		r.extendDelayed(now)
		if !r.isDecided(now) {
			next = r.startDue(now)
		}
		if r.isDecided(now) {
			break
		}
		timer.Reset(time.Until(next))
		select {
		case reply := <-r.replies:
			r.probes[reply.index].heard = true
			r.observe(reply.roundTrip)
		case i := <-r.sent:
			r.probes[i].at = time.Now() // other programs may have delayed it
		case result := <-r.results:
			r.record(result)
		case <-timer.C:
		case <-done:
			done = nil
			for i, p := range r.probes {
				if p.at.IsZero() {
					r.errs[i] = context.Cause(r.ctx)
				}
			}
		}
	}
	r.stopProbes(&TimeoutError{time.Since(r.start)})
}

// startDue starts the probes that are due, and repeats the requests that are due. It returns
// the time at which the state of the round can change without a reply.
func (r *probeRound) startDue(now time.Time) (next time.Time) {
	next = r.start.Add(searchTime)
	for !next.After(now) {
		next = next.Add(foundDeviceTime)
	}
	isDue := func(at time.Time) bool {
		if at.After(now) && at.Before(next) {
			next = at
		}
		return !at.After(now)
	}
	isAvailable := slices.Contains(r.errs, nil)
	for place, i := range r.order {
		p, b := &r.probes[i], r.backends[i]
		if p.at.IsZero() && r.isPending(i) {
			delay := time.Duration(0)
			if b.searches && r.firstTime == 0 && !r.haveFailed(r.order[:place]) {
				delay = min(searchDelay, r.wait/4)
			}
			if place > 0 && !r.othersAsk || place > 0 && !isDue(r.start.Add(delay)) {
				continue
			}
			r.begin(i)
		}
		if !r.isPending(i) {
			r.othersAsk = true // a remembered backend has failed
			continue
		}
		if !r.othersAsk {
			limit := r.firstTime
			if p.heard {
				limit = maxPreference
			}
			r.othersAsk = isDue(p.at.Add(limit))
		}
		isLast := place == len(r.order)-1 && !b.searches // it has no time limit
		if p.repeated.IsZero() && !isLast && isDue(p.at.Add(r.repeatTime(place))) {
			if p.repeated = now; !p.heard {
				close(p.repeat)
			}
		}
		if isAvailable {
			isDue(r.lossTime(i))
		}
	}
	return next
}

// haveFailed reports whether all of the backends that use no search have failed.
func (r *probeRound) haveFailed(indices []int) bool {
	return !slices.ContainsFunc(indices, func(i int) bool { return !r.backends[i].searches && r.isPending(i) })
}

// isPending reports whether a backend has no result yet.
func (r *probeRound) isPending(i int) bool { return errors.Is(r.errs[i], errNotProbed) }

// repeatTime returns the time from the request of a backend to its repetition. The backend is
// named by its place in the order.
func (r *probeRound) repeatTime(place int) time.Duration {
	switch {
	case place == 0 && r.firstTime > 0:
		return min(repeatDelay, r.firstTime/2)
	case r.roundTrip > 0:
		return min(repeatDelay, preferenceTime(r.roundTrip)/2)
	}
	return repeatDelay
}

// preferenceTime returns how long a backend wins over less preferred ones that have replied.
// A device may delay its response to a search, so the round-trip time does not limit that.
func (r *probeRound) preferenceTime(i int) time.Duration {
	needsGateway := func(i int) bool { return r.errs[i] == nil && r.backends[i].probe != nil }
	switch {
	case !slices.ContainsFunc(r.order, needsGateway):
		return directPreference
	case r.roundTrip > 0 && !r.backends[i].searches:
		return preferenceTime(r.roundTrip)
	}
	return maxPreference
}

// lossTime returns the time from which a less preferred backend wins over one that has started.
// Half of the time of the preference follows the repetition of the request, and a delay of this
// process.
func (r *probeRound) lossTime(i int) time.Time {
	p, limit := &r.probes[i], r.preferenceTime(i)
	return slices.MaxFunc([]time.Time{p.at.Add(limit), p.repeated.Add(limit / 2), p.delayed.Add(limit / 2)}, time.Time.Compare)
}

// extendDelayed extends the time of a backend once if this process did not run when the round
// was to be decided: the reply may not have been read yet.
func (r *probeRound) extendDelayed(now time.Time) {
	const maxDelay = 2 * time.Millisecond
	for i := range r.probes {
		p := &r.probes[i]
		if r.found.IsZero() || p.repeated.IsZero() || !p.delayed.IsZero() || !r.isPending(i) {
			continue
		}
		due := r.lossTime(i)
		if due.Before(r.found) {
			due = r.found
		}
		if now.Sub(due) > maxDelay {
			p.delayed = now
		}
	}
}

// hasLost reports whether a backend was silent for so long that a less preferred one wins.
func (r *probeRound) hasLost(i int, now time.Time) bool {
	p := &r.probes[i]
	return !p.at.IsZero() && !p.repeated.IsZero() && !now.Before(r.lossTime(i))
}

// begin starts the probe of a backend.
func (r *probeRound) begin(i int) {
	ctx, stop := context.WithCancelCause(r.ctx)
	p := &r.probes[i]
	p.at, p.stop, p.repeat = time.Now(), stop, make(chan struct{})
	ctx = ctxsync.WithProbe(ctx, ctxsync.Probe{Repeat: p.repeat, Sent: sync.OnceFunc(func() { r.sent <- i }), Replied: func(roundTrip time.Duration) {
		select {
		case r.replies <- probeReplyTime{i, roundTrip}:
		default:
		}
	}})
	r.running++
	go func() { r.results <- probeResult{i, r.backends[i].runProbe(ctx)} }() // awaited by stopProbes or awaitLate
}

// record stores the result of a probe.
func (r *probeRound) record(result probeResult) {
	r.running--
	if r.errs[result.index] = result.err; result.err == nil && r.found.IsZero() {
		r.found = time.Now()
	}
	r.probes[result.index].stop(nil)
	b := r.backends[result.index]
	isReply := !errors.Is(result.err, backends.ErrNoReply) || errno.IsRefused(result.err)
	if isReply && b.probe != nil && !b.searches && r.ctx.Err() == nil {
		// If the request was repeated, it is unknown which transmission was answered. The time
		// since the first one is the safe choice.
		r.observe(time.Since(r.probes[result.index].at))
	}
}

// observe records a round-trip time. The shortest one counts.
func (r *probeRound) observe(roundTrip time.Duration) {
	if roundTrip = max(roundTrip, 1); r.roundTrip == 0 || roundTrip < r.roundTrip {
		r.roundTrip = roundTrip
	}
}

// isDecided reports whether the round needs no further result. It needs the results of all
// backends before the first available one, unless they have lost. If no backend is available,
// it needs all results. After searchTime, it does not need the result of a search if the
// gateway refuses everything else and the search.
func (r *probeRound) isDecided(now time.Time) bool {
	isAvailable, isRefused := slices.Contains(r.errs, nil), true
	for i, err := range r.errs {
		isRefused = isRefused && (r.backends[i].searches || errno.IsRefused(err))
	}
	searchOver := now.Sub(r.start) >= searchTime
	for _, i := range r.order {
		switch {
		case r.errs[i] == nil:
			return true
		case !r.isPending(i), isAvailable && r.hasLost(i, now):
		case !searchOver || !isRefused || r.backends[i].isPromising():
			return false
		}
	}
	return true
}

// isPromising reports whether a backend uses no search, or its search may still succeed.
func (b *Backend) isPromising() bool {
	p, is := b.Backend.(interface{ Promising() bool })
	return !b.searches || !is || p.Promising()
}

// stopProbes ends the probes and waits for them, except for those of backends that are
// preferred to the chosen one and may still reply. If no backend is available, each gets the
// error of its probe.
func (r *probeRound) stopProbes(cause error) {
	chosen, late := slices.Index(r.errs, nil), 0
	for i := range r.probes {
		switch p := &r.probes[i]; {
		case p.at.IsZero() || !r.isPending(i):
		case i < chosen && !r.backends[i].searches:
			p.late = true
			late++
		default:
			p.stop(cause)
		}
	}
	for r.running > late {
		result := <-r.results
		if r.probes[result.index].late {
			late--
			r.record(result)
		} else if r.running--; chosen < 0 {
			r.errs[result.index] = result.err
		}
	}
}

// awaitLate waits for the probes that run has not stopped, until lateTime after their start,
// and calls record for each backend that replies.
func (r *probeRound) awaitLate(record func(*Backend)) {
	for i := range r.probes {
		if p := &r.probes[i]; p.late && r.isPending(i) {
			timer := time.AfterFunc(time.Until(p.at.Add(lateTime)), func() { p.stop(&TimeoutError{lateTime}) })
			defer timer.Stop()
		}
	}
	for ; r.running > 0; r.running-- {
		result := <-r.results
		if r.probes[result.index].stop(nil); result.err == nil {
			record(r.backends[result.index])
		}
	}
}

// answers returns which protocols the gateway supports, as far as the round shows it.
func (r *probeRound) answers() map[string]answer {
	out := map[string]answer{}
	chosen := slices.IndexFunc(r.order, func(i int) bool { return r.errs[i] == nil })
	for place, i := range r.order {
		switch b := r.backends[i]; {
		case b.probe == nil:
		case r.errs[i] == nil:
			out[b.name] = b.answer()
		case !r.isPending(i), place < chosen && !r.probes[i].at.IsZero():
			out[b.name] = answer{}
		}
	}
	return out
}
