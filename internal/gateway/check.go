package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// The timing of checks.
const (
	checkTimeout     = 10 * time.Second // bounds one check
	silentTime       = 15 * time.Minute // after this time without a reply, a gateway is checked less often
	silentFactor     = 4                // how much less often
	firstLookUpAfter = 4 * time.Second  // between the grant of a UPnP entry and its first lookup: some routers drop it within seconds
	lookUpPause      = time.Second      // between first lookups
	tableSearchPause = time.Hour        // between searches for a table, if there is none
)

// checks is the state of an owner's checks. Each gateway with mappings is checked in rounds,
// because announcements of restarts get lost, and many gateways send none. A round asks each
// backend that granted mappings about one of them: the one that was granted or checked longest
// ago.
//
// The reply shows a restart if the protocol has an epoch. A mapping is looked up in the table
// of the gateway, if it has UPnP. If it is missing, all mappings are looked up. Otherwise, a
// mapping of NAT-PMP or PCP is renewed, which creates it again if the gateway has lost it.
type checks struct {
	round   Timer
	running bool

	// The first lookups of new UPnP entries, in the order of their grants.
	lookUp     Timer
	lookingUp  bool
	newEntries []newEntry
	lookUpFrom time.Time // the next lookup is not earlier
}

// newEntry is an entry that was not looked up since it was created.
type newEntry struct {
	*entry
	due time.Time
}

// table is a backend whose gateway lists the mappings of all protocols. LookUp has the
// results of Checker.Check.
type table interface {
	LookUp(ctx context.Context, m backends.Mapping) error
}

// listing records whether the table of another backend lists an entry, or any entry of another
// backend.
type listing uint8

const (
	notLookedUp listing = iota
	listed
	unlisted
)

// SetCheckEvery sets the interval of checks that the client wants. A negative interval means
// no checks. The owner uses the shortest interval of its clients.
func (c *Client) SetCheckEvery(d time.Duration) {
	c.owner.loop.Do(func() {
		c.checkEvery = d
		if o := c.owner; !o.checks.round.at.IsZero() {
			o.loop.Arm(&o.checks.round, time.Time{})
			o.armChecks(time.Now())
		}
	})
}

// checkEvery returns the shortest interval of the owner's clients, or 0 for no checks.
func (o *Owner) checkEvery() (shortest time.Duration) {
	for _, c := range o.clients {
		if c.checkEvery > 0 && (shortest == 0 || c.checkEvery < shortest) {
			shortest = c.checkEvery
		}
	}
	return shortest
}

// armChecks sets the time of the next round after one that began at start, unless it is set.
// Rounds that were missed are not made up for, for example while the host slept.
func (o *Owner) armChecks(start time.Time) {
	interval := o.checkEvery()
	if interval == 0 || o.checks.running || !o.checks.round.at.IsZero() {
		return
	}
	now := time.Now()
	if o.isSilent(now) {
		interval *= silentFactor
	}
	at := start.Add(interval - o.registry.jitter(interval/8))
	if at.Before(now) {
		at = now
	}
	o.loop.Arm(&o.checks.round, at)
}

// isSilent reports whether no backend with a mapping to check has got a reply for silentTime.
func (o *Owner) isSilent(now time.Time) (silent bool) {
	for _, b := range o.backends {
		switch {
		case o.nextToCheck(b) == nil: // silentSince is not updated
		case b.silentSince.IsZero() || now.Sub(b.silentSince) <= silentTime:
			return false
		default:
			silent = true
		}
	}
	return silent
}

// startRound starts a round of checks. The owner waits for the round when it ends.
func (o *Owner) startRound() {
	var due []*Backend
	if o.checkEvery() == 0 {
		return // the clients that wanted checks have left
	}
	for _, b := range o.backends {
		if o.nextToCheck(b) != nil {
			due = append(due, b)
		}
	}
	if len(due) == 0 {
		return // the next grant arms the timer
	}
	start := time.Now()
	o.checks.running = o.spawn(func() {
		for _, b := range due {
			o.checkBackend(b)
		}
		o.loop.Do(func() {
			o.checks.running = false
			o.armChecks(start)
		})
	})
}

// isCheckable reports whether a round may check the entry. An entry that is requested anyway
// needs no check, unless the last request got no reply: the pause before the next one can be
// longer than an interval.
func (e *entry) isCheckable() bool {
	return e.isHeld() && !e.isOnce() && (!e.doubtful || errors.Is(e.err, backends.ErrNoReply)) && slices.ContainsFunc(e.holders, func(h *Handle) bool {
		return e.group.owner.isAttached(h) && !h.isUnusable()
	})
}

// nextToCheck returns the checkable entry of a backend that was granted or checked longest
// ago, or nil.
func (o *Owner) nextToCheck(b *Backend) (next *entry) {
	if _, is := b.Backend.(backends.Checker); !is {
		return nil
	}
	for _, g := range o.groups {
		for _, e := range g.entries {
			if e.backend == b && e.isCheckable() && (next == nil || e.comparePosition(next) < 0) {
				next = e
			}
		}
	}
	return next
}

// comparePosition orders entries by the time of their last grant or check, and entries with the
// same time by their ports. A check that does not show whether the gateway has the entry counts
// too, so that it does not delay the checks of the others.
func (e *entry) comparePosition(other *entry) int {
	return cmp.Or(cmp.Compare(e.checked, other.checked), e.group.internal.Compare(other.group.internal),
		cmp.Compare(e.Offset, other.Offset), cmp.Compare(e.Protocol, other.Protocol))
}

// checkBackend checks one mapping of a backend. It runs off the loop.
func (o *Owner) checkBackend(b *Backend) {
	var (
		e *entry
		m backends.Mapping
	)
	o.loop.Do(func() {
		e = o.nextToCheck(b)
		const recent = 4 // a part of the interval; if all mappings were granted or checked in it, there is nothing to check
		if e == nil || time.Since(o.start)-e.checked < o.checkEvery()/recent {
			e = nil
			return
		}
		m, e.checked = *e.granted, time.Since(o.start)
	})
	if e == nil {
		return
	}
	err := o.ask(func(ctx context.Context) error { return b.Backend.(backends.Checker).Check(ctx, m) })
	o.loop.Do(func() {
		switch {
		case !errors.Is(err, backends.ErrNoReply):
			o.recordReply(b)
		case b.silentSince.IsZero():
			b.silentSince = time.Now()
		}
	})
	lookUpIn := b
	if errors.Is(err, backends.ErrUnsupported) {
		if t := o.tableOf(b); t != nil {
			lookUpIn, err = t, o.lookUpIn(t, e, m)
		}
	}
	switch {
	case errors.Is(err, backends.ErrNoMapping) && o.lookUpAll(b, lookUpIn):
	case errors.Is(err, backends.ErrNoMapping), errors.Is(err, backends.ErrUnsupported), err == nil && lookUpIn != b:
		// A table can list a mapping whose firewall rule has been deleted. By PCP, only a renewal
		// shows the external address.
		o.loop.Do(func() { e.group.renewForCheck(e) })
	}
}

// recordReply records that the gateway replied to a check. Requests that had no reply are then
// repeated at once.
func (o *Owner) recordReply(b *Backend) {
	const reason = "the gateway replies again"
	now := time.Now()
	o.verifySoon(func(e *entry) bool {
		return e.backend == b && e.doubtful && errors.Is(e.err, backends.ErrNoReply) && !e.group.renewing
	}, false, reason, now)
	if !b.silentSince.IsZero() {
		b.silentSince = time.Time{}
		for _, c := range o.clients {
			c.wake(reason, now)
		}
	}
}

// ask makes a request of a check.
func (o *Owner) ask(send func(context.Context) error) error {
	ctx, cancel := bound(ctxsync.WithPriority(o.ctx, ctxsync.Check), checkTimeout)
	defer cancel()
	return send(ctx)
}

// tableOf returns a backend in whose table the mappings of another backend can be looked up,
// or nil. If it is unknown whether the gateway has a table, tableOf searches for it.
func (o *Owner) tableOf(b *Backend) (found *Backend) {
	var search bool
	o.loop.Do(func() {
		if b.config.Ready != nil || o.key.Gateway.Addr().Is6() {
			return
		}
		for _, t := range o.backends {
			if _, is := t.Backend.(table); is && t != b && t.config.Ready == nil && t.others != unlisted {
				found = t
				search = errors.Is(t.probeErr, errNotProbed) || t.probeErr != nil && time.Since(t.probedAt) > tableSearchPause
				return
			}
		}
	})
	if found == nil {
		return nil
	}
	if search {
		err := o.ask(found.runProbe)
		o.loop.Do(func() { found.probeErr, found.probedAt = err, time.Now() })
	}
	available := false
	o.loop.Do(func() { available = found.probeErr == nil })
	if d, is := found.Backend.(interface{ OtherDevice() netip.Addr }); !available || is && d.OtherDevice().IsValid() {
		return nil
	}
	return found
}

// lookUpIn looks up an entry of another backend in a table. If the table does not list the
// first entry, it is not used any more: some tables do not list the mappings of other
// protocols.
func (o *Owner) lookUpIn(t *Backend, e *entry, m backends.Mapping) error {
	err := o.ask(func(ctx context.Context) error { return t.Backend.(table).LookUp(ctx, m) })
	o.loop.Do(func() {
		switch {
		case err == nil:
			t.others, e.listing = listed, listed
		case errors.Is(err, backends.ErrNoMapping) && t.others == notLookedUp:
			t.others = unlisted
			err = fmt.Errorf("%v: %w: it does not list the mappings of other protocols", t, backends.ErrUnsupported)
		}
	})
	return err
}

// lookUpAll looks up all entries of a backend, after one was missing, and requests the missing
// ones again. The table of another backend may not list some entries, so it must have listed
// at least one that is missing now. Otherwise lookUpAll returns false.
func (o *Owner) lookUpAll(b, in *Backend) bool {
	var lookUp func(context.Context, backends.Mapping) error
	switch t := in.Backend.(type) {
	case table:
		lookUp = t.LookUp
	case backends.Checker:
		lookUp = t.Check
	}
	granted := map[*entry]*backends.Mapping{}
	o.loop.Do(func() {
		for _, e := range o.allEntries() {
			if e.backend == b && e.isCheckable() && (in == b || e.listing != unlisted) {
				granted[e] = e.granted
			}
		}
	})
	missing := map[*entry]bool{}
	for e, m := range granted {
		err := o.ask(func(ctx context.Context) error { return lookUp(ctx, *m) })
		missing[e] = errors.Is(err, backends.ErrNoMapping)
		if errors.Is(err, backends.ErrNoReply) {
			break
		}
	}
	isLoss := false
	o.loop.Do(func() {
		for e, m := range granted {
			missing[e] = missing[e] && e.granted == m
			isLoss = isLoss || missing[e] && (in == b || e.listing == listed)
		}
		if !isLoss {
			for e := range granted {
				if missing[e] {
					e.listing = unlisted
				}
			}
			return
		}
		now := time.Now()
		o.verifySoon(func(e *entry) bool { return missing[e] && e.markLost(now) },
			true, "the mapping is missing from the gateway's table", b.verifyLimit.Next(now))
	})
	return isLoss
}

// renewForCheck renews the entries of the group in the order of their grants, because only a
// renewal can show whether the gateway still has an entry.
func (g *group) renewForCheck(e *entry) {
	if e.group != g || !e.isCheckable() || g.renewing {
		return
	}
	for _, other := range g.entries {
		other.mustRenew = other.mustRenew || other.isCheckable()
	}
	g.enqueueRenewals(ctxsync.Check)
}

// expectFirstLookUp adds a new entry to the entries that are looked up soon.
func (o *Owner) expectFirstLookUp(e *entry) {
	if _, is := e.backend.Backend.(table); !is || o.checkEvery() == 0 {
		return
	}
	o.checks.newEntries = append(o.checks.newEntries, newEntry{e, time.Now().Add(firstLookUpAfter)})
	o.armLookUp()
}

// armLookUp sets the time of the next first lookup.
func (o *Owner) armLookUp() {
	if o.checks.lookingUp || len(o.checks.newEntries) == 0 {
		return
	}
	at := o.checks.newEntries[0].due
	if at.Before(o.checks.lookUpFrom) {
		at = o.checks.lookUpFrom
	}
	o.loop.Arm(&o.checks.lookUp, at)
}

// lookUpNew looks up the entry that was created first.
func (o *Owner) lookUpNew() {
	e := o.checks.newEntries[0].entry
	if o.checks.newEntries = o.checks.newEntries[1:]; !e.isCheckable() || o.checkEvery() == 0 {
		o.armLookUp()
		return
	}
	m, b := *e.granted, e.backend
	o.checks.lookingUp = o.spawn(func() {
		err := o.ask(func(ctx context.Context) error { return b.Backend.(table).LookUp(ctx, m) })
		if errors.Is(err, backends.ErrNoMapping) {
			o.lookUpAll(b, b)
		}
		o.loop.Do(func() {
			o.checks.lookingUp, o.checks.lookUpFrom = false, time.Now().Add(lookUpPause)
			o.armLookUp()
		})
	})
}
