package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// The pace of renewals and retries.
const (
	longestLease  = 24 * time.Hour // longer grants are renewed as if they lasted a day (RFC 6887, section 15)
	shortestPause = 500 * time.Millisecond
	retryPause    = 4 * time.Second  // between renewals that fail (RFC 6887, section 11.2.1)
	verifyPause   = 20 * time.Minute // between renewals of a mapping without an end
	firstPause    = time.Second      // after a failure to get a mapping, doubling
	longestPause  = time.Minute
	refusedPause  = 15 * time.Minute // the longest if the gateway refuses by policy
)

// errRanOut is why a renewal without an answer ends when the mapping does.
var errRanOut = fmt.Errorf("%w before the mapping ran out", backends.ErrNoReply)

// next returns when to request the entry next, or the zero Time: never.
func (e *entry) next(now time.Time) time.Time {
	jitter := e.group.owner.registry.jitter
	var at time.Time
	if e.granted != nil {
		at = e.granted.Expires()
	}
	switch {
	case e.isOnce():
		return at // when it is dropped
	case e.err == nil && at.IsZero():
		return now.Add(e.renewWithin(verifyPause + jitter(verifyPause/8)))
	case e.err == nil:
		// Half of the lifetime, and up to an eighth more, so that entries granted together
		// are not renewed together.
		lifetime := min(at.Sub(now), longestLease)
		return now.Add(e.renewWithin(max(lifetime/2+jitter(lifetime/8), shortestPause)))
	case !at.IsZero() && !e.doubtful:
		// The windows of RFC 6887, section 11.2.1: half of what is left, again and again. A
		// longer grant counts as one for a day.
		if day := e.granted.Granted.Add(longestLease); day.Before(at) {
			at = day
		}
		if left := at.Sub(now); left > 0 {
			return now.Add(min(max(left/2, retryPause), left))
		}
	}
	return now.Add(Backoff(int(e.failures), e.err, jitter))
}

// renewWithin returns the pause before a renewal: that of the RFCs, or a shorter one that a
// holder wants.
func (e *entry) renewWithin(pause time.Duration) time.Duration {
	for _, h := range e.holders {
		if every := h.spec().RenewEvery; every > 0 {
			pause = min(pause, every)
		}
	}
	return pause
}

// Backoff returns the pause after so many failures in a row, the last of which was err.
func Backoff(failures int, err error, jitter func(time.Duration) time.Duration) time.Duration {
	longest := longestPause
	if errors.Is(err, backends.ErrNotAuthorized) || errors.Is(err, backends.ErrPrivateWAN) || errors.Is(err, backends.ErrUnsupported) {
		longest = refusedPause
	}
	const doublings = 10 // are more than the longest pause
	pause := min(firstPause<<min(max(failures-1, 0), doublings), longest)
	return pause + jitter(pause/8)
}

// Jitter returns a random duration from 0 to d.
func Jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d) //nolint:gosec // no secret
}

// Pacer says when all mappings of a gateway may next be requested again because of a
// change, so that a gateway whose clock runs wild causes no storm: a few rounds at once,
// since a line that goes down and up again makes two changes, then one in a while. The
// zero value has seen none.
type Pacer struct {
	earned time.Time // when what the rounds so far have spent is earned back
}

// Next returns when the next round may come.
func (p *Pacer) Next(now time.Time) time.Time {
	const (
		burst = 3
		pause = 5 * time.Second
	)
	earned := p.earned
	if earned.Before(now) {
		earned = now
	}
	if earned.Sub(now) < burst*pause { // else a round is still to come
		p.earned = earned.Add(pause)
	}
	if at := earned.Add(-(burst - 1) * pause); at.After(now) {
		return at
	}
	return now
}

// arm makes the group's timer fire when the first of its entries or handles is due.
func (o *Owner) arm(g *group) {
	var first time.Time
	for _, e := range g.entries {
		if e.isHeld() {
			first = sooner(first, e.due)
		}
	}
	for _, h := range g.handles {
		first = sooner(first, h.due)
	}
	if !g.working { // else it is armed in the end
		o.loop.Arm(&g.Timer, first)
	}
}

// enqueueWork makes the entries of a group be renewed that are due or wanted then, and
// the handles be requested that are.
func (g *group) enqueueWork() {
	if g.working {
		return
	}
	g.working = true
	g.owner.loop.Arm(&g.Timer, time.Time{})
	g.owner.enqueue(&flow{group: g, priority: ctxsync.Renewal, run: func(f *flow) {
		f.pass()
		for tried := map[*Handle]bool{}; ; {
			i := slices.IndexFunc(g.handles, func(h *Handle) bool {
				return !h.due.IsZero() && !h.due.After(time.Now()) && !tried[h]
			})
			if i < 0 {
				break
			}
			h := g.handles[i]
			tried[h] = true
			_ = f.about(f.ctx, h, func() error { return f.ensure(h, cmp.Or(h.reason, "enabled")) })
		}
		g.working = false
	}})
}

// renewNow renews what a handle has, or requests it anew.
func (f *flow) renewNow(h *Handle) error {
	f.requests = ctxsync.WithFresh(f.requests, time.Now())
	for _, e := range h.entries() {
		e.wanted = true
	}
	h.reason = "refreshed"
	f.pass()
	if err := f.gone(h); err != nil {
		return err
	}
	if h.isIntact() {
		return h.Status().Err
	}
	return f.ensure(h, "refreshed")
}

// pass renews entries of the group one after another, in the order of their grants: those
// that are due, and all that their handles hold beside them. It ends with the first that
// the gateway does not answer.
func (f *flow) pass() {
	f.expire()
	f.renewWanted()
	f.expire()
}

// renewWanted makes the renewals of a pass.
func (f *flow) renewWanted() {
	var rest []*entry
	for _, e := range f.group.entries {
		if e.isHeld() {
			e.wanted = e.wanted || !e.due.IsZero() && !e.due.After(time.Now())
			rest = append(rest, e)
		}
	}
	for _, e := range rest {
		e.wanted = e.wanted || !e.isOnce() && slices.ContainsFunc(rest, func(other *entry) bool { return other.wanted && e.sharesHandle(other) })
	}
	slices.SortStableFunc(rest, compareOrder)
	broken := false // a renewal broke the entries that were granted later
	for len(rest) > 0 {
		e := rest[0]
		rest = rest[1:]
		switch {
		case !e.isHeld() || !e.wanted && !broken:
		case e.isExpired(time.Now()):
			f.ranOut(e, errRanOut)
		case e.isOnce() && !e.wanted:
		default:
			anew := e.order.lost != 0
			m, err := f.renew(e)
			broken = broken || err == nil && !anew
			upcoming := slices.DeleteFunc(slices.Clone(rest), func(e *entry) bool {
				return e.state != active || !e.wanted && (!broken || e.isOnce())
			})
			if !f.renewed(e, &m, err, upcoming) {
				return
			}
		}
	}
}

// expire ends the entries of the group whose lifetime is over.
func (f *flow) expire() {
	for _, e := range slices.Clone(f.group.entries) {
		if e.isHeld() && e.isExpired(time.Now()) {
			f.ranOut(e, errRanOut)
		}
	}
}

// renew makes one renewal. A mapping that runs out meanwhile is lost, which is not to be
// noticed only when the last retransmission got no reply.
func (f *flow) renew(e *entry) (backends.Mapping, error) {
	m, r, timeout := *e.granted, e.spec.request(e.Member, e.asked), e.holders[0].spec().Timeout
	if at, has := f.ctx.Deadline(); has {
		timeout = max(timeout, time.Until(at)+lateReply)
	}
	e.again = time.Time{}
	return f.request(timeout, func(ctx context.Context) (backends.Mapping, error) {
		if at := m.Expires(); !at.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadlineCause(ctx, at, errRanOut)
			defer cancel()
		}
		granted, err := e.backend.Renew(ctx, m, r)
		if err != nil && errors.Is(context.Cause(ctx), errRanOut) && !errors.Is(err, errRanOut) {
			err = fmt.Errorf("%w: %w", errRanOut, err)
		}
		return granted, err
	})
}

// renewed records what came of a renewal, and reports whether the gateway answers. The
// holders of the entries to be renewed next are told later.
func (f *flow) renewed(e *entry, m *backends.Mapping, err error, upcoming []*entry) bool {
	now := time.Now()
	if err != nil && !f.isAnswer(err) {
		e.noReply()
	}
	switch {
	case err == nil:
		e.record(m, false)
		e.publish(upcoming)
		return true
	case errors.Is(err, errRanOut) || e.isExpired(now):
		f.ranOut(e, err)
		return f.isAnswer(err)
	case f.isAnswer(err):
		upcoming = nil
	}
	for _, one := range append(upcoming, e) { // nor would it answer for the others
		one.wanted, one.err = false, err
		one.failures++
		one.due = one.next(now)
		one.publish(nil)
	}
	return f.isAnswer(err)
}

// publish tells the holders of an entry what it is, but those of what comes after it.
func (e *entry) publish(upcoming []*entry) {
	for _, h := range e.holders {
		if o := e.group.owner; o.has(h) && !slices.ContainsFunc(upcoming, func(later *entry) bool { return later.isHeldBy(h) }) {
			reason := cmp.Or(h.reason, "renewed")
			h.reason = ""
			o.refresh(h, reason)
		}
	}
}

// ranOut records that the lifetime of an entry is over. Its holders are requested anew,
// without a pause.
func (o *Owner) ranOut(e *entry, err error) {
	holders := slices.Clone(e.holders)
	if !e.until.IsZero() && !e.isOnce() {
		e.state, e.granted, e.unknown = creating, nil, true
	} else {
		e.holders = nil
		e.remove()
	}
	for _, h := range holders {
		if !o.has(h) {
			continue
		}
		h.backend, h.due = nil, time.Now()
		if h.isUnusable() || h.spec().Once {
			h.due = time.Time{}
		}
		if h.spec().Once { // that it ends is no event
			after := *h.Status()
			e.holders = without(e.holders, h)
			e.group.leave(h, after.Granted)
			if granted := after.Grants(); len(granted) > 0 {
				h.silent = granted
			}
			after.Granted, after.Next = nil, time.Time{}
			h.store(&after)
			continue
		}
		h.publish(func(s *Status) { s.Granted, s.Err, s.Next = nil, err, h.due }, err.Error())
	}
}

// watch follows what a backend notices of its gateway, until the owner ends.
func (o *Owner) watch(b *Backend) {
	w, ok := b.Backend.(backends.Watcher)
	if !ok || b.watched {
		return
	}
	b.watched = true
	o.spawn(func() {
		Persist(o.ctx, o.registry.jitter, func(ctx context.Context) error {
			return w.Watch(ctx, func(change backends.Change) {
				o.loop.Post(func() { o.changed(b, change) })
			})
		}, func(err error) {
			o.log().Warn("the gateway is not watched for a while", "backend", b.name, "err", err)
		})
	})
}

// Persist does what runs until ctx ends. If it fails, failed is called, and it is begun
// again after a pause.
func Persist(ctx context.Context, jitter func(time.Duration) time.Duration, do func(context.Context) error, failed func(error)) {
	for failures := 1; ; failures++ {
		err := do(ctx)
		if ctx.Err() != nil {
			return
		}
		failed(err)
		if ctxsync.Sleep(ctx, Backoff(failures, nil, jitter)) != nil {
			return
		}
	}
}

// changed requests all entries of a backend again. RFC 6886 section 3.7 would wait up
// to five seconds, to spare a gateway with many hosts; the queue of one request at a
// time spares it too, and mappings are back sooner.
func (o *Owner) changed(b *Backend, change backends.Change) {
	o.log().Info("the gateway changed", "backend", b.name, "change", change.Kind.String(),
		"external", change.External, "reason", change.Reason)
	restarted := change.Kind == backends.Restarted
	if restarted {
		b.lost = change.Since
	}
	at := b.pace.Next(time.Now())
	o.suspect(func(e *entry) bool {
		return e.backend == b && (!restarted || change.Since.IsZero() || e.markLost(change.Since))
	}, restarted, change.Reason, at)
	for _, c := range o.joined {
		c.wake(change.Reason, at)
	}
}

// suspect requests entries again, and all that their handles hold beside them. If they
// are lost, their holders are told at once.
func (o *Owner) suspect(is func(*entry) bool, lost bool, reason string, at time.Time) {
	for _, g := range o.inOrder() {
		found := slices.DeleteFunc(slices.Clone(g.entries), func(e *entry) bool { return !is(e) })
		for _, e := range g.entries {
			switch {
			case !slices.ContainsFunc(found, e.sharesHandle):
			case e.state == creating:
				e.again = sooner(e.again, at)
			case e.isHeld() && !e.isOnce():
				e.suspect(lost, reason, at)
			}
		}
		o.arm(g)
	}
}

func (e *entry) suspect(lost bool, reason string, at time.Time) {
	e.doubtful, e.again, e.lost, e.due = true, sooner(e.again, at), e.lost || lost, sooner(e.due, at)
	o := e.group.owner
	for _, h := range e.holders {
		if !o.has(h) {
			continue
		}
		if h.reason = reason; lost || at.After(time.Now()) { // else the answer is published in a moment
			o.refresh(h, reason)
		}
	}
}
