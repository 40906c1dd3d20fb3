package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// The timing of renewals and retries.
const (
	maxLifetime       = 24 * time.Hour // a longer grant is renewed as if it lasted a day (RFC 6887, section 15)
	minRenewalPause   = 500 * time.Millisecond
	minRetryPause     = 4 * time.Second  // shortest pause between failed renewals (RFC 6887, section 11.2.1)
	verifyInterval    = 20 * time.Minute // between renewals of a mapping without an end
	firstBackoff      = time.Second      // after the first failed request; doubles with each failure
	maxBackoff        = time.Minute
	maxRefusedBackoff = 15 * time.Minute // longest pause if the gateway refuses by policy
)

// errExpired ends a renewal that has no reply when the lifetime ends.
var errExpired = fmt.Errorf("%w before the mapping expired", backends.ErrNoReply)

// nextRenewal returns the time of the entry's next request. For an entry with Once, which is
// not renewed, it returns the end of the lifetime.
func (e *entry) nextRenewal(now time.Time) time.Time {
	jitter := e.group.owner.registry.jitter
	var at time.Time
	if e.granted != nil {
		at = e.granted.Expires()
	}
	switch {
	case e.isOnce():
		return at // when it is removed
	case e.err == nil && at.IsZero():
		return now.Add(e.renewalPause(verifyInterval + jitter(verifyInterval/8)))
	case e.err == nil:
		// Half of the lifetime, plus up to an eighth, so that entries that were granted
		// together are not renewed together.
		lifetime := min(at.Sub(now), maxLifetime)
		return now.Add(e.renewalPause(max(lifetime/2+jitter(lifetime/8), minRenewalPause)))
	case !at.IsZero() && !e.doubtful:
		// RFC 6887, section 11.2.1: each retry waits for half of the remaining time. A grant
		// for longer than a day counts as a grant for one day.
		if day := e.granted.Granted.Add(maxLifetime); day.Before(at) {
			at = day
		}
		if remaining := at.Sub(now); remaining > 0 {
			return now.Add(min(max(remaining/2, minRetryPause), remaining))
		}
	}
	return now.Add(Backoff(int(e.failures), e.err, jitter))
}

// renewalPause returns the shortest RenewEvery of the holders, or the given pause if that is
// shorter.
func (e *entry) renewalPause(pause time.Duration) time.Duration {
	for _, h := range e.holders {
		if interval := h.spec().RenewEvery; interval > 0 {
			pause = min(pause, interval)
		}
	}
	return pause
}

// Backoff returns the pause after a number of consecutive failures, the last of which was
// err.
func Backoff(failures int, err error, jitter func(time.Duration) time.Duration) time.Duration {
	longest := maxBackoff
	if errors.Is(err, backends.ErrNotAuthorized) || errors.Is(err, backends.ErrPrivateWAN) || errors.Is(err, backends.ErrUnsupported) {
		longest = maxRefusedBackoff
	}
	const doublings = 10 // enough to reach the longest pause
	pause := min(firstBackoff<<min(max(failures-1, 0), doublings), longest)
	return pause + jitter(pause/8)
}

// Jitter returns a random duration between 0 and d.
func Jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d) //nolint:gosec // not a secret
}

// TokenBucket limits how often all mappings of a gateway are requested again after a change,
// so that frequent changes do not flood the gateway. It allows three rounds at once, because
// a connection that is lost and restored causes two changes, and then one round every five
// seconds. The zero value is full.
type TokenBucket struct {
	fullAt time.Time // the time at which the bucket is full again
}

// Next returns the time at which the next round may start. It takes a token, unless a round is
// already waiting.
func (b *TokenBucket) Next(now time.Time) time.Time {
	const (
		burst = 3
		pause = 5 * time.Second
	)
	fullAt := b.fullAt
	if fullAt.Before(now) {
		fullAt = now
	}
	if fullAt.Sub(now) < burst*pause { // otherwise a round is already waiting
		b.fullAt = fullAt.Add(pause)
	}
	if at := fullAt.Add(-(burst - 1) * pause); at.After(now) {
		return at
	}
	return now
}

// arm sets the group's timer to the next request of its held entries and its handles.
func (o *Owner) arm(g *group) {
	var first time.Time
	for _, e := range g.entries {
		if e.isHeld() {
			first = earlier(first, e.nextRequest)
		}
	}
	for _, h := range g.handles {
		first = earlier(first, h.nextRequest)
	}
	if !g.renewing { // otherwise it is armed when the flow has finished
		o.loop.Arm(&g.Timer, first)
	}
}

// enqueueRenewals enqueues a flow that renews the entries that are due or marked by then, and
// requests the handles that are due.
func (g *group) enqueueRenewals(priority ctxsync.Priority) {
	if g.renewing {
		return
	}
	g.renewing = true
	g.owner.loop.Arm(&g.Timer, time.Time{})
	g.owner.enqueue(&flow{group: g, priority: priority, run: func(f *flow) {
		f.renewPass()
		for tried := map[*Handle]bool{}; ; {
			i := slices.IndexFunc(g.handles, func(h *Handle) bool {
				return !h.nextRequest.IsZero() && !h.nextRequest.After(time.Now()) && !tried[h]
			})
			if i < 0 {
				break
			}
			h := g.handles[i]
			tried[h] = true
			_ = f.runFor(f.ctx, h, func() error { return f.recreate(h, cmp.Or(h.reason, "enabled")) })
		}
		g.renewing = false
	}})
}

// renewNow renews the entries of a handle at once. If they then do not satisfy its spec, they
// are created again.
func (f *flow) renewNow(h *Handle) error {
	f.requests = ctxsync.WithFresh(f.requests, time.Now())
	for _, e := range h.entries() {
		e.mustRenew = true
	}
	h.reason = "refreshed"
	f.renewPass()
	if err := f.checkAttached(h); err != nil {
		return err
	}
	if h.isIntact() {
		return h.Status().Err
	}
	return f.recreate(h, "refreshed")
}

// renewPass renews entries of the group one after another, in the order of their grants. It
// renews those that are due, and all other entries of their holders. It stops at the first
// renewal without a reply.
func (f *flow) renewPass() {
	f.expireEntries()
	f.renewMarked()
	f.expireEntries()
}

// renewMarked marks the entries that belong to the pass and renews them.
func (f *flow) renewMarked() {
	var remaining []*entry
	for _, e := range f.group.entries {
		if e.isHeld() {
			e.mustRenew = e.mustRenew || !e.nextRequest.IsZero() && !e.nextRequest.After(time.Now())
			remaining = append(remaining, e)
		}
	}
	for _, e := range remaining {
		e.mustRenew = e.mustRenew || !e.isOnce() && slices.ContainsFunc(remaining, func(other *entry) bool { return other.mustRenew && e.sharesHandle(other) })
	}
	slices.SortStableFunc(remaining, compareOrder)
	laterBroken := false // a renewal broke the entries that were granted later
	for len(remaining) > 0 {
		e := remaining[0]
		remaining = remaining[1:]
		switch {
		case !e.isHeld() || !e.mustRenew && !laterBroken:
		case e.isExpired(time.Now()):
			f.recordExpiry(e, errExpired)
		case e.isOnce() && !e.mustRenew:
		default:
			wasLost := e.order.lost != 0
			m, err := f.renew(e)
			laterBroken = laterBroken || err == nil && !wasLost
			upcoming := slices.DeleteFunc(slices.Clone(remaining), func(e *entry) bool {
				return e.state != active || !e.mustRenew && (!laterBroken || e.isOnce())
			})
			if !f.recordRenewal(e, &m, err, upcoming) {
				return
			}
		}
	}
}

// expireEntries ends the held entries of the group whose lifetime has ended.
func (f *flow) expireEntries() {
	for _, e := range slices.Clone(f.group.entries) {
		if e.isHeld() && e.isExpired(time.Now()) {
			f.recordExpiry(e, errExpired)
		}
	}
}

// renew makes one renewal. The request ends with the lifetime of the mapping, so that the
// expiry is noticed at once and not only after the last retransmission.
func (f *flow) renew(e *entry) (granted backends.Mapping, err error) {
	m, r, timeout := *e.granted, e.spec.request(e.Member, e.requestedExternal), e.holders[0].spec().RequestTimeout
	if at, has := f.ctx.Deadline(); has {
		timeout = max(timeout, time.Until(at)+lateReplyTime)
	}
	e.verifyAt = time.Time{}
	lost := e.lost
	err = f.request(timeout, func(ctx context.Context) (err error) {
		if lost {
			ctx = ctxsync.WithLossKnown(ctx)
		}
		if at := m.Expires(); !at.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadlineCause(ctx, at, errExpired)
			defer cancel()
		}
		granted, err = e.backend.Renew(ctx, m, r)
		if err != nil && errors.Is(context.Cause(ctx), errExpired) && !errors.Is(err, errExpired) {
			err = fmt.Errorf("%w: %w", errExpired, err)
		}
		return err
	})
	return granted, err
}

// recordRenewal records the result of a renewal. It returns whether the gateway replied.
// It does not notify the holders of upcoming entries. They are notified after the renewal of
// their last entry.
func (f *flow) recordRenewal(e *entry, m *backends.Mapping, err error, upcoming []*entry) bool {
	now := time.Now()
	if err != nil && !f.isReply(err) {
		e.recordNoReply()
	}
	switch {
	case err == nil:
		before := e.granted.External.Addr()
		e.record(m, false)
		f.compareAddr(e, before)
		e.publish(upcoming)
		return true
	case errors.Is(err, errExpired) || e.isExpired(now):
		f.recordExpiry(e, err)
		return f.isReply(err)
	case f.isReply(err):
		upcoming = nil
	}
	for _, failed := range append(upcoming, e) { // the gateway would not reply to the others either
		failed.mustRenew, failed.err = false, err
		failed.failures++
		failed.nextRequest = failed.nextRenewal(now)
		failed.publish(nil)
	}
	f.armChecks(now)
	return f.isReply(err)
}

// compareAddr compares the external address of a renewed entry with its address before the
// renewal. If it differs, the other entries of the backend with that address are renewed too.
func (o *Owner) compareAddr(e *entry, before netip.Addr) {
	now := e.granted.External.Addr()
	if !before.IsValid() || !now.IsValid() || now == before {
		return
	}
	reason := fmt.Sprintf("the external address was %v and is %v", before, now)
	for _, h := range e.holders {
		h.reason = cmp.Or(h.reason, reason)
	}
	o.verifySoon(func(other *entry) bool {
		return other != e && other.backend == e.backend && other.granted != nil && other.granted.External.Addr() == before && !other.doubtful && !other.mustRenew
	}, false, reason, time.Now())
}

// publish updates the status of the entry's holders, except for holders of an upcoming entry.
func (e *entry) publish(upcoming []*entry) {
	for _, h := range e.holders {
		if o := e.group.owner; o.isAttached(h) && !slices.ContainsFunc(upcoming, func(later *entry) bool { return later.isHeldBy(h) }) {
			reason := cmp.Or(h.reason, "renewed")
			h.reason = ""
			o.updateStatus(h, reason)
		}
	}
}

// recordExpiry records that the lifetime of an entry has ended. Its holders are requested
// again at once.
func (o *Owner) recordExpiry(e *entry, err error) {
	holders := slices.Clone(e.holders)
	if !e.unconfirmedUntil.IsZero() && !e.isOnce() {
		e.state, e.granted, e.unconfirmed = creating, nil, true
	} else {
		e.holders = nil
		e.remove()
	}
	for _, h := range holders {
		if !o.isAttached(h) {
			continue
		}
		h.backend, h.nextRequest = nil, time.Now()
		if h.isUnusable() || h.spec().Once {
			h.nextRequest = time.Time{}
		}
		if h.spec().Once { // the end of a mapping with Once is not an event
			after := *h.Status()
			e.holders = without(e.holders, h)
			e.group.leaveToExpire(h, after.Granted)
			if granted := after.Grants(); len(granted) > 0 {
				h.expiredGrants = granted
			}
			after.Granted, after.NextRequest = nil, time.Time{}
			h.store(&after)
			continue
		}
		h.publish(func(s *Status) { s.Granted, s.Err, s.NextRequest = nil, err, h.nextRequest }, err.Error())
	}
}

// watch starts to watch a backend's gateway for changes, until the owner ends.
func (o *Owner) watch(b *Backend) {
	w, ok := b.Backend.(backends.Watcher)
	if !ok || b.watched {
		return
	}
	b.watched = true
	o.spawn(func() {
		KeepRunning(o.ctx, o.registry.jitter, func(ctx context.Context) error {
			return w.Watch(ctx, func(change backends.Change) {
				o.loop.Post(func() { o.onChange(b, change) })
			})
		}, func(err error) {
			o.log().Warn("the gateway is not watched until the next attempt", "backend", b.name, "err", err)
		})
	})
}

// KeepRunning calls do, which runs until ctx ends. If do returns earlier, KeepRunning calls
// failed with its error and, after a pause, calls do again.
func KeepRunning(ctx context.Context, jitter func(time.Duration) time.Duration, do func(context.Context) error, failed func(error)) {
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

// onChange requests all entries of a backend again. RFC 6886, section 3.7, requires a random
// delay of up to five seconds to protect a gateway with many hosts. The queue of one request
// at a time protects it too and restores the mappings sooner.
func (o *Owner) onChange(b *Backend, change backends.Change) {
	o.log().Info("the gateway changed", "backend", b.name, "change", change.Kind.String(),
		"external", change.External, "reason", change.Reason)
	restarted := change.Kind == backends.Restarted
	if restarted {
		b.lost = change.Since
	}
	at := b.verifyLimit.Next(time.Now())
	o.verifySoon(func(e *entry) bool {
		if e.backend != b || change.Kind == backends.AddressChanged && e.granted != nil && change.External.IsValid() && e.granted.External.Addr() == change.External {
			return false // it was granted after the change
		}
		return !restarted || change.Since.IsZero() || e.markLost(change.Since)
	}, restarted, change.Reason, at)
	for _, c := range o.clients {
		c.wake(change.Reason, at)
	}
}

// verifySoon requests the selected entries again at the given time, with all other entries of
// their holders. If the entries are lost, the holders are notified at once.
func (o *Owner) verifySoon(selects func(*entry) bool, lost bool, reason string, at time.Time) {
	for _, g := range o.sortedGroups() {
		found := slices.DeleteFunc(slices.Clone(g.entries), func(e *entry) bool { return !selects(e) })
		for _, e := range g.entries {
			switch {
			case !slices.ContainsFunc(found, e.sharesHandle):
			case e.state == creating:
				e.verifyAt = earlier(e.verifyAt, at)
			case e.isHeld() && !e.isOnce():
				e.verifySoon(lost, reason, at)
			}
		}
		o.arm(g)
	}
}

func (e *entry) verifySoon(lost bool, reason string, at time.Time) {
	e.doubtful, e.verifyAt, e.lost, e.nextRequest = true, earlier(e.verifyAt, at), e.lost || lost, earlier(e.nextRequest, at)
	o := e.group.owner
	for _, h := range e.holders {
		if !o.isAttached(h) {
			continue
		}
		if h.reason = reason; lost || at.After(time.Now()) { // otherwise the reply is published in a moment
			o.updateStatus(h, reason)
		}
	}
}
