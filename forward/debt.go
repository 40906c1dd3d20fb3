package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// debts are what gateways still have though nobody holds it: they did not answer
// when it was to be deleted. They are asked again until they do, its lifetime is
// over, or the Forwarder has ended. A refusal is an answer.
type debts struct {
	forwarder *Forwarder
	job       job

	mu     sync.Mutex
	owed   []*debt
	paying bool // in attend
}

type debt struct {
	port uint16 // the internal one that it was enabled with
	leg  leg
	next time.Time
	past time.Duration // between the last tries
}

// The pauses between tries, doubling.
const (
	firstClaim   = time.Second
	longestClaim = time.Minute
)

// owe takes note of legs that could not be deleted.
func (d *debts) owe(port uint16, legs []leg) {
	if len(legs) == 0 {
		return
	}
	d.forwarder.ledger.leave(port, legs)
	d.mu.Lock()
	for _, l := range legs {
		d.owed = slices.DeleteFunc(d.owed, func(o *debt) bool { return o.leg.lease.id == l.lease.id })
		d.owed = append(d.owed, &debt{port: port, leg: l, next: time.Now().Add(firstClaim), past: firstClaim})
	}
	d.mu.Unlock()
	d.reschedule()
}

func (d *debts) place() *job { return &d.job }

// attend is what the scheduler does when a try is due. Whoever is about it looks
// again when it is done.
func (d *debts) attend(ctx context.Context) {
	d.mu.Lock()
	busy := d.paying
	d.paying = true
	d.mu.Unlock()
	if busy {
		return
	}
	if err := d.pay(ctx, d.due(time.Now())); err != nil {
		d.forwarder.log.Debug("not deleted yet", "err", err)
	}
	d.mu.Lock()
	d.paying = false
	d.mu.Unlock()
	d.reschedule()
}

// reschedule puts the debts on the scheduler's list for their next try.
func (d *debts) reschedule() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.owed) == 0 {
		return
	}
	next := slices.MinFunc(d.owed, func(a, b *debt) int { return a.next.Compare(b.next) }).next
	d.forwarder.scheduler.set(d, next)
}

// due returns what is to be asked for at a time; at the zero Time, all.
func (d *debts) due(at time.Time) []*debt {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.owed), func(o *debt) bool { return !at.IsZero() && o.next.After(at) })
}

// pay asks for each deletion, and says which were not had. A gateway that does
// not answer one is not asked for others.
func (d *debts) pay(ctx context.Context, owed []*debt) error {
	var errs []error
	silent := map[*candidate]bool{}
	for _, o := range owed {
		err := backends.ErrNoReply
		if !silent[o.leg.candidate] {
			err = d.claim(ctx, o)
		}
		silent[o.leg.candidate] = errors.Is(err, backends.ErrNoReply)
		d.put(o, err == nil || !silent[o.leg.candidate] && ctx.Err() == nil)
		if err != nil {
			errs = append(errs, fmt.Errorf("forward: mapping left to its lifetime: %w", err))
		}
	}
	return errors.Join(errs...)
}

// put forgets what is done with, or puts it off.
func (d *debts) put(o *debt, done bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if done {
		d.owed = slices.DeleteFunc(d.owed, func(other *debt) bool { return other == o })
		return
	}
	o.past = min(2*o.past, longestClaim)
	o.next = time.Now().Add(o.past)
}

// claim returns nil where nothing is owed any more.
func (d *debts) claim(ctx context.Context, o *debt) error {
	f, m := d.forwarder, o.leg.granted
	if expired([]leg{o.leg}, time.Now()) {
		return nil
	}
	b := f.atHand(o.leg)
	if b == nil {
		return fmt.Errorf("%w: %v is not on the way out", backends.ErrNoReply, m.Gateway.Addr())
	}
	ctx, cancel := context.WithTimeoutCause(ctx, giveBackTime, backends.ErrNoReply)
	defer cancel()
	if err := sweep(ctx, b, o.leg.lease.id, *m); err != nil {
		return err
	}
	f.log.Info("what could not be deleted is gone, or held again", "protocol", m.Protocol, "external", m.External)
	f.ledger.done(&inheritance{mapping: *m})
	f.ledger.changed()
	f.disturbed(o.port, []leg{o.leg})
	return nil
}

// atHand returns a backend for the gateway of a leg, or nil where no way leads
// there now: another gateway may be in its place.
func (f *Forwarder) atHand(l leg) backends.Backend {
	if l.candidate.way == nil { // ready-made
		return l.candidate.backend
	}
	internal := netip.AddrPortFrom(l.granted.Internal.Addr(), l.lease.id.internal)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.current {
		if w == nil || w.strayed != "" {
			continue
		}
		for _, c := range w.candidates {
			if w.identity(c, l.granted.Protocol, internal) == l.lease.id {
				return c.backend
			}
		}
	}
	return nil
}
