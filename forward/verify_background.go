package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/reach"
)

// secondLookDelay is the pause before a mapping that seems unreachable is verified once more. In
// the background, the reaction may be to delete the mapping.
const secondLookDelay = 5 * time.Second

// background is the state of the verifications of one mapping in the background.
type background struct {
	mapping  *Mapping
	proven   bool // the mapping was reachable at the last verification that showed anything
	reported bool // EventUnreachable was the last event
	doubted  bool // the last verification that showed anything found it unreachable, and no second one confirmed that
}

// verifyInBackground verifies a mapping after each grant, and then regularly, until it is
// closed.
func (m *Mapping) verifyInBackground() {
	f, b := m.forwarder, &background{mapping: m}
	var endpoint string
	for {
		changed := m.Changed()
		s := m.status()
		if s.Closed || f.ctx.Err() != nil {
			return
		}
		next := (<-chan time.Time)(nil)
		var timer *time.Timer
		if s.IsActive() {
			if now := fmt.Sprint(endpoints(s.Grants())); now != endpoint {
				endpoint, b.proven, b.reported, b.doubted = now, false, false, false
			}
			b.run(f.ctx)
			timer = time.NewTimer(f.config.VerifyEvery)
			next = timer.C
		}
		for waiting := true; waiting; {
			select {
			case <-next:
				waiting = false
			case <-f.ctx.Done():
				waiting = false
			case <-changed: // a renewal is no reason to verify again
				changed = m.Changed()
				s := m.status()
				waiting = !s.Closed && s.IsActive() == (timer != nil) && fmt.Sprint(endpoints(s.Grants())) == endpoint
			}
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// endpoints returns the external and internal endpoints of mappings.
func endpoints(ms []backends.Mapping) (out []netip.AddrPort) {
	for _, m := range ms {
		out = append(out, m.External, m.Internal)
	}
	return out
}

// run verifies the mapping once, and reports a change.
func (b *background) run(ctx context.Context) {
	r, ok := b.measure(ctx)
	if !ok {
		return
	}
	if r.Verdict == reach.Unreachable && !b.doubted {
		if ctxsync.Sleep(ctx, secondLookDelay) != nil {
			return
		}
		if r, ok = b.measure(ctx); !ok {
			return
		}
		// reach.STUN cannot measure again so soon. The next verification is then the second look.
		b.doubted = r.Verdict == reach.Unknown
	}
	if r.Verdict != reach.Unknown {
		b.doubted = false
	}
	if r.Verdict == reach.Unreachable && b.proven && !r.FailsHere() {
		b.proven = false // it is mapped again once
		if r, ok = b.remap(ctx, r); !ok {
			return
		}
	}
	switch {
	case r.Verdict == reach.Reachable && (!b.proven || b.reported):
		b.proven, b.reported = true, false
		b.mapping.forwarder.sendResult(b.mapping, EventVerified, r)
	case r.Verdict == reach.Unreachable && !b.reported:
		b.reported = true
		b.mapping.forwarder.sendResult(b.mapping, EventUnreachable, r)
	}
}

// measure verifies the mapping. It returns false if there is no result, because the mapping is
// not granted or ctx has ended.
func (b *background) measure(ctx context.Context) (reach.Result, bool) {
	r, err := b.mapping.verify(ctx, nil, true)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrNoMapping) && !errors.Is(err, ErrClosed) {
		b.mapping.forwarder.log.Warn("the mapping cannot be verified", "mapping", b.mapping.String(), "err", err)
	}
	return r, err == nil
}

// remap deletes a proven mapping that is no longer reachable, requests it again, and verifies
// it. It is the cure if a gateway still lists the mapping but no longer forwards it.
func (b *background) remap(ctx context.Context, dead reach.Result) (reach.Result, bool) {
	m, f := b.mapping, b.mapping.forwarder
	f.log.Warn("mapping is no longer reachable: it is deleted and requested again", "mapping", m.String(), "reason", dead.Reason)
	bounded, cancel := context.WithTimeout(ctx, f.config.RequestTimeout)
	defer cancel()
	if c := m.handle.Client(); c == nil || c.Remap(bounded, m.handle) != nil {
		return dead, ctx.Err() == nil
	}
	return b.measure(ctx)
}

// sendResult logs an event about a verification and queues it for OnEvent.
func (f *Forwarder) sendResult(m *Mapping, kind EventKind, r reach.Result) {
	grants := m.Grants()
	f.send(Event{Kind: kind, Mapping: m, Grants: grants, Previous: grants, Reason: r.Reason, Time: time.Now(), Result: r})
}
