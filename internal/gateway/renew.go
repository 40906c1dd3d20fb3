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
	"github.com/natforward/goforward/internal/priority"
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
	case len(e.holders) > 0 && e.once():
		return at // when it is dropped
	case e.err == nil && at.IsZero():
		return now.Add(verifyPause + jitter(verifyPause/8))
	case e.err == nil:
		// Half of the lifetime, and up to an eighth more, so that entries granted together
		// are not renewed together.
		lifetime := min(at.Sub(now), longestLease)
		return now.Add(max(lifetime/2+jitter(lifetime/8), shortestPause))
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

// Backoff returns the pause after so many failures in a row, the last of which was err.
func Backoff(failures int, err error, jitter func(time.Duration) time.Duration) time.Duration {
	longest := longestPause
	if errors.Is(err, backends.ErrNotAuthorized) || errors.Is(err, backends.ErrPrivateWAN) || errors.Is(err, backends.ErrUnsupported) {
		longest = refusedPause // somebody's will
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

// arm makes the group fire when the first of its entries or handles is due.
func (o *Owner) arm(g *group) {
	var first time.Time
	due := func(at time.Time) {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	for _, e := range g.entries {
		if e.state == active && len(e.holders) > 0 {
			due(e.due)
		}
	}
	for _, h := range g.handles {
		due(h.due)
	}
	switch {
	case first.IsZero():
		o.loop.Disarm(g)
	case !g.working: // else it is armed in the end
		o.loop.Arm(g, first)
	}
}

// Fire requests what is due.
func (g *group) Fire() { g.owner.enqueueWork(g) }

// enqueueWork makes the entries of a group be renewed that are due or wanted then, and
// the handles be requested that are.
func (o *Owner) enqueueWork(g *group) {
	if g.working {
		return
	}
	g.working = true
	o.loop.Disarm(g)
	o.enqueue(&op{
		group: g, priority: priority.Renewal,
		run: func(_ context.Context, p *op) {
			p.pass(p.ctx)
			for tried := map[*Handle]bool{}; ; {
				var (
					h      *Handle
					reason string
				)
				p.do(func() {
					i := slices.IndexFunc(g.handles, func(h *Handle) bool { return h.isDue(time.Now()) && !tried[h] })
					if i >= 0 {
						h, reason = g.handles[i], cmp.Or(g.handles[i].reason, "enabled")
					}
				})
				if h == nil {
					break
				}
				tried[h] = true
				_ = p.about(p.ctx, h.Client(), h, func(flow context.Context, p *op) error { return p.ensure(flow, h, reason) })
			}
			p.do(func() { g.working = false })
		},
	})
}

// pass renews entries of the group one after another. It ends with the first that the
// gateway does not answer.
func (p *op) pass(flow context.Context) {
	var rest []*entry
	p.do(func() { rest = p.group.due(time.Now()) })
	var least time.Duration
	if at, has := flow.Deadline(); has {
		least = time.Until(at) + lateReply
	}
	broken := false // a renewal broke the entries that were granted later
	for len(rest) > 0 {
		e := rest[0]
		rest = rest[1:]
		var (
			m       *backends.Mapping
			request backends.Request
			timeout time.Duration
			anew    bool
		)
		p.do(func() {
			now := time.Now()
			switch {
			case e.state != active || len(e.holders) == 0 || !e.wanted && !broken:
			case e.expired(now):
				p.ranOut(e, errRanOut)
			case e.once() && !e.wanted:
			default:
				m, anew, e.asking = e.granted, e.order.lost != 0, true
				request, timeout = e.params.Request(e.protocol, e.asked), max(least, e.holders[0].wish().Timeout)
			}
		})
		if m == nil {
			continue
		}
		granted, err := p.renew(e.backend.Backend, m, request, timeout)
		broken = broken || err == nil && !anew
		ended := true
		p.do(func() { ended = !p.renewed(e, &granted, err, upcoming(rest, broken)) })
		if ended {
			return
		}
	}
}

// renew makes one renewal. A mapping that runs out meanwhile is lost, which is not to be
// noticed only when the last retransmission got no reply.
func (p *op) renew(b backends.Backend, m *backends.Mapping, r backends.Request, timeout time.Duration) (backends.Mapping, error) {
	ctx, cancel := bound(p.requests, timeout)
	defer cancel()
	if at := m.Expires(); !at.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, at, errRanOut)
		defer cancel()
	}
	p.inFlight.Store(true)
	granted, err := b.Renew(ctx, *m, r)
	p.inFlight.Store(false)
	if err != nil && errors.Is(context.Cause(ctx), errRanOut) && !errors.Is(err, errRanOut) {
		err = fmt.Errorf("%w: %w", errRanOut, err)
	}
	return granted, err
}

// due returns the entries of a group in the order of their grants. Those that are due
// are marked as wanted, with all that their handles hold beside them.
func (g *group) due(now time.Time) []*entry {
	var out []*entry
	for _, e := range g.entries {
		if e.state == active && len(e.holders) > 0 {
			e.wanted = e.wanted || !e.due.IsZero() && !e.due.After(now)
			out = append(out, e)
		}
	}
	for _, e := range out {
		e.wanted = e.wanted || !e.once() && slices.ContainsFunc(out, func(other *entry) bool { return other.wanted && e.sharesHandle(other) })
	}
	slices.SortStableFunc(out, compareOrder)
	return out
}

// renewed records what came of a renewal, and reports whether the gateway answers.
func (p *op) renewed(e *entry, m *backends.Mapping, err error, rest []*entry) bool {
	e.asking = false
	now := time.Now()
	switch {
	case err == nil:
		e.recordGrant(m, false)
		e.record(m)
		e.publish(rest)
		return true
	case errors.Is(err, errRanOut) || e.expired(now):
		p.ranOut(e, err)
		return p.answers(err)
	case p.answers(err):
		e.failed(now, err)
		e.publish(nil)
		return true
	}
	for _, one := range append(rest, e) { // nor would it answer for the others
		one.failed(now, err)
		one.publish(nil)
	}
	return false
}

// failed records a renewal that failed.
func (e *entry) failed(now time.Time, err error) {
	e.wanted, e.err = false, err
	e.failures++
	e.due = e.next(now)
}

// publish tells the holders of an entry what it is, but those of what comes after it.
func (e *entry) publish(rest []*entry) {
	for _, h := range e.holders {
		if !slices.ContainsFunc(rest, func(later *entry) bool { return slices.Contains(later.holders, h) }) {
			e.group.owner.tell(h)
		}
	}
}

// tell publishes what a handle is after a renewal.
func (o *Owner) tell(h *Handle) {
	if o.has(h) {
		reason := cmp.Or(h.reason, "renewed")
		h.reason = ""
		o.refresh(h, reason)
	}
}

// upcoming returns the entries that are about to be renewed.
func upcoming(rest []*entry, broken bool) []*entry {
	return slices.DeleteFunc(slices.Clone(rest), func(e *entry) bool {
		return e.state != active || !e.wanted && (!broken || e.once())
	})
}

// ranOut drops an entry whose lifetime is over. Its holders are requested anew, without a
// pause.
func (o *Owner) ranOut(e *entry, err error) {
	holders := e.holders
	e.holders = nil
	e.remove()
	for _, h := range holders {
		if !o.has(h) {
			continue
		}
		h.backend = nil
		h.due = time.Now()
		if h.wish().Once || h.unusable {
			h.due = time.Time{}
		}
		if h.wish().Once { // that it ends is no event
			after := *h.Status()
			if granted := after.State(); len(granted) > 0 {
				h.silent = granted
			}
			after.Granted, after.Next = nil, time.Time{}
			h.status.Store(&after)
			h.notify()
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
	o.work.Go(func() {
		for failures := 1; ; failures++ {
			err := w.Watch(o.ctx, func(change backends.Change) {
				o.loop.Post(func() { o.changed(b, change) })
			})
			if o.ctx.Err() != nil {
				return
			}
			o.log().Warn("the gateway is not watched for a while", "backend", b.name, "err", err)
			if !Sleep(o.ctx, Backoff(failures, nil, o.registry.jitter)) {
				return
			}
		}
	})
}

// Sleep waits, and reports whether ctx has not ended meanwhile.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
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
	o.change = change.Reason
	o.loop.ArmSooner(&o.wake, at)
}

// suspect requests entries again, and all that their handles hold beside them. If they
// are lost, their holders are told at once.
func (o *Owner) suspect(is func(*entry) bool, lost bool, reason string, at time.Time) {
	for _, g := range o.inOrder() {
		var found []*entry
		for _, e := range g.entries {
			if is(e) {
				found = append(found, e)
			}
		}
		for _, e := range g.entries {
			if slices.ContainsFunc(found, e.sharesHandle) {
				e.suspect(lost, reason, at)
			}
		}
		if len(found) > 0 {
			o.arm(g)
		}
	}
}

func (e *entry) suspect(lost bool, reason string, at time.Time) {
	if e.state != active {
		e.again = e.state == creating && e.group.busy
		return
	}
	if e.once() {
		return
	}
	e.doubtful, e.again = true, e.asking
	e.lost = e.lost || lost
	if e.due.IsZero() || at.Before(e.due) {
		e.due = at
	}
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
