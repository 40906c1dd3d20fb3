package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
)

// ensure gets the mapping granted, or granted again, and records what came of
// it. The reason is for events.
func (m *Mapping) ensure(ctx context.Context, reason string) error {
	if err := m.turn.take(ctx); err != nil {
		return err
	}
	defer m.give()
	ctx, stop := context.WithCancelCause(m.grants.with(ctx))
	defer stop(nil)
	m.mu.Lock()
	closed, legs, w := m.closed, m.legs, m.wish
	m.stop = stop
	preferred := m.preferred
	m.mu.Unlock()
	if closed {
		return fmt.Errorf("forward: %w: closed", ErrNoMapping)
	}
	renewal := len(legs) > 0
	legs, err := m.forwarder.assure(ctx, &w, slices.Clone(legs), preferred)
	m.settle(legs, err, reason)
	if errors.Is(err, errRanOut) && ctx.Err() == nil { // the loss is told, and needs no pause
		legs, err = m.forwarder.assure(ctx, &w, slices.Clone(legs), preferred)
		m.settle(legs, err, reason)
	}
	if err == nil && renewal && reason != touched {
		m.forwarder.renewed(m, legs)
	}
	return err
}

// assure renews legs, or establishes them where there are none, or where they
// have expired or no longer fit together. It returns those that stand. The
// preferred external port is that of the last grant, or 0.
func (f *Forwarder) assure(ctx context.Context, w *wish, legs []leg, preferred uint16) ([]leg, error) {
	if len(legs) == 0 {
		return f.establish(ctx, w, preferred)
	}
	if f.isElsewhere(legs) {
		return f.relocate(ctx, w, legs)
	}
	if expired(legs, time.Now()) {
		for _, l := range legs {
			l.lease.drop()
		}
		return f.establish(ctx, w, preferred)
	}
	f.eldestFirst(legs)
	err := renew(ctx, w, legs)
	if w.even(legs) == nil {
		return legs, err
	}
	// One unit or none, also at renewal.
	f.giveBack(ctx, w.internal.Port(), legs)
	if err != nil {
		return nil, err
	}
	return f.establish(ctx, w, legs[0].granted.External.Port())
}

// errRanOut is why a renewal ends that nobody answered in time.
var errRanOut = fmt.Errorf("%w before the mapping ran out", backends.ErrNoReply)

// renew renews one leg after another, and ends with the first that fails. What
// runs out meanwhile is lost, which is not to be found out only when the last
// retransmission went unanswered.
func renew(ctx context.Context, w *wish, legs []leg) error {
	if at := expiry(legs); !at.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, at, errRanOut)
		defer cancel()
	}
	for i := range legs {
		l := &legs[i]
		granted, err := l.lease.renew(ctx, l.candidate.backend, w.request(l.granted.Protocol, l.asked))
		switch {
		case err == nil:
		case errors.Is(context.Cause(ctx), errRanOut) && !errors.Is(err, errRanOut):
			return fmt.Errorf("%w: %w", errRanOut, err)
		default:
			return err
		}
		l.granted = granted
	}
	return nil
}

// settle records what an attempt came to, and tells of it. Who calls it has the
// turn.
func (m *Mapping) settle(legs []leg, err error, reason string) {
	now := time.Now()
	m.mu.Lock()
	before := m.state()
	if err == nil {
		m.rank(legs)
	}
	m.legs = legs
	m.lost = err != nil && (m.lost || expired(legs, now))
	after := m.state()
	kind := m.kindOf(before, after)
	if len(after) > 0 {
		m.known = true
		m.preferred = after[0].External.Port()
	}
	failedBefore := m.err != nil
	m.err = err
	if err != nil {
		m.failures++
		reason = err.Error()
	} else {
		m.failures, m.doubt = 0, false
	}
	m.next = m.due(now)
	if kind != 0 {
		m.since, m.why = now, reason
	}
	if kind != 0 || failedBefore || err != nil {
		m.notify()
	}
	m.mu.Unlock()
	if err == nil {
		m.forwarder.ledger.renewed.Store(true)
	}
	if kind != 0 {
		m.forwarder.ledger.changed()
		m.forwarder.emit(Event{Kind: kind, Mapping: m, State: after, Previous: before, Reason: reason, Time: now})
	}
	if err != nil {
		m.forwarder.log.Warn("mapping not granted", "mapping", m, "err", err)
	}
}

// expired reports whether the grants have run out.
func expired(legs []leg, now time.Time) bool {
	at := expiry(legs)
	return !at.IsZero() && !now.Before(at)
}

// kindOf compares what was granted before and after an attempt. m.mu is held.
func (m *Mapping) kindOf(before, after []backends.Mapping) EventKind {
	switch {
	case len(after) == 0 && len(before) > 0:
		return Lost
	case len(after) == 0:
		return 0
	case !m.known:
		return Mapped
	case len(before) == 0:
		return Restored
	case !slices.EqualFunc(before, after, sameEndpoints):
		return Changed
	}
	return 0
}

func sameEndpoints(a, b backends.Mapping) bool {
	return a.External == b.External && a.Internal == b.Internal && a.Gateway == b.Gateway && a.Backend == b.Backend
}

// The pace of renewals and retries.
const (
	longestLease  = 24 * time.Hour // longer grants are renewed as if they lasted a day (RFC 6887, section 15)
	shortestPause = 500 * time.Millisecond
	retryPause    = 4 * time.Second // between renewals that fail (RFC 6887, section 11.2.1)
	firstPause    = time.Second     // after a failure to get a mapping, doubling
	longestPause  = time.Minute
	refusedPause  = 15 * time.Minute // the longest where the gateway refuses: that is somebody's will
	verifyPause   = 20 * time.Minute // between looks at a mapping without an end
)

// due returns when to ask next, or the zero Time: never. m.mu is held.
func (m *Mapping) due(now time.Time) time.Time {
	at := expiry(m.legs)
	switch {
	case m.closed:
		return time.Time{}
	case m.wish.once:
		return at // when the Forwarder forgets it
	case m.err == nil && at.IsZero():
		// Nothing ends it but a gateway that forgets it.
		return now.Add(verifyPause + m.forwarder.jitter(verifyPause/8))
	case m.err == nil:
		// Half of the lifetime, and up to an eighth more, so that mappings made
		// together are not renewed together.
		lifetime := min(at.Sub(now), longestLease)
		return now.Add(max(lifetime/2+m.forwarder.jitter(lifetime/8), shortestPause))
	case !at.IsZero() && !m.doubt:
		if left := windowed(m.legs, at).Sub(now); left > 0 {
			// The windows of RFC 6887 section 11.2.1: half of what is left, again and again.
			return now.Add(min(max(left/2, retryPause), left))
		}
	}
	longest := longestPause
	if isRefusal(m.err) {
		longest = refusedPause
	}
	const doublings = 10 // are more than the longest pause
	pause := min(firstPause<<min(m.failures-1, doublings), longest)
	return now.Add(pause + m.forwarder.jitter(pause/8))
}

// windowed returns until when a renewal that fails is tried in windows: the
// expiry, but as if the grant were for a day where it is for longer.
func windowed(legs []leg, expiry time.Time) time.Time {
	if day := legs[0].granted.Granted.Add(longestLease); day.Before(expiry) {
		return day
	}
	return expiry
}

// isRefusal reports whether an attempt came to nothing because the gateway, or
// who runs it, will not have it.
func isRefusal(err error) bool {
	if sum := (*Error)(nil); errors.As(err, &sum) {
		err = sum.Kind
	}
	return errors.Is(err, backends.ErrNotAuthorized) || errors.Is(err, backends.ErrPrivateWAN) || errors.Is(err, backends.ErrUnsupported)
}

// attend is what the scheduler does when a mapping is due.
func (m *Mapping) attend(ctx context.Context) {
	ctx, cancel := m.forwarder.bound(ctx)
	defer cancel()
	m.mu.Lock()
	once, known, reason := m.wish.once && len(m.legs) > 0, m.known, m.reason
	m.reason = ""
	m.mu.Unlock()
	if once {
		m.forwarder.release(m)
		m.abandon()
		return
	}
	switch {
	case reason != "":
	case known:
		reason = "renewed"
	default:
		reason = "enabled"
	}
	err := m.ensure(ctx, reason)
	if errors.Is(err, ErrNoMapping) || ctx.Err() != nil && !isOwnTimeout(ctx) {
		return
	}
	m.reschedule()
}

// reschedule puts the mapping on the scheduler's list for when it is due.
func (m *Mapping) reschedule() {
	m.mu.Lock()
	next, suspected := m.next, m.reason != "" // then it is on the list already, and sooner
	m.mu.Unlock()
	if !next.IsZero() && !suspected {
		m.forwarder.scheduler.set(m, next)
	}
}

// suspect asks for the mapping again at a time, because its gateway may have
// forgotten it. Where the gateway's clock says that it has, it counts as lost
// until then.
func (m *Mapping) suspect(change backends.Change, at time.Time) {
	m.mu.Lock()
	if m.closed || m.wish.once {
		m.mu.Unlock()
		return
	}
	before := m.state()
	m.reason = change.Reason
	m.doubt = true
	if m.next.IsZero() || at.Before(m.next) {
		m.next = at
	}
	m.lost = m.lost || change.Kind == backends.Restarted
	lost := m.lost && len(before) > 0
	if lost {
		m.since, m.why = time.Now(), change.Reason
		m.notify()
	}
	m.mu.Unlock()
	if lost {
		m.forwarder.emit(Event{Kind: Lost, Mapping: m, Previous: before, Reason: change.Reason, Time: time.Now()})
	}
	m.forwarder.scheduler.hasten(m, at)
}
