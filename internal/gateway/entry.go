package gateway

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/state"
)

// entryState is the state of an entry: exactly one of these.
type entryState uint8

const (
	creating      entryState = iota // requested, and not granted yet
	active                          // granted
	pendingDelete                   // its deletion got no reply or was refused, and is retried
	restored                        // an earlier run held it
	removed                         // no longer in the table
)

// entry is a mapping on the gateway, shared by its holders.
type entry struct {
	Member
	group             *group
	backend           *Backend
	state             entryState
	lost              bool      // the gateway lost it, as far as is known
	doubtful          bool      // the gateway may have lost it, and has not granted it since
	verifyAt          time.Time // when to request it again, as that became so after the last request was sent; zero: it did not
	mustRenew         bool      // to be renewed by the next pass
	superseded        bool      // what another entry was before, to be deleted
	unconfirmed       bool      // a request got no reply: the gateway may have it
	requestedExternal uint16    // the external port
	failures          uint16
	spec              *Spec             // of the last request
	granted           *backends.Mapping // never changed, but replaced; nil: not granted yet
	unconfirmedUntil  time.Time         // when what got no reply runs out, if the gateway granted it; zero: nothing did
	holders           []*Handle
	err               error // of the last request, or nil
	nextRequest       time.Time
	order             grantOrder
	deletion          *deletion // of an entry that is to be deleted; else nil
}

// ending is what an entry needs when its last holder is gone, or an earlier run held it.
type deletion struct {
	client        *Client       // that answers for it: it held it last, or took it over; nil: none
	closingClient *Client       // whose Close attempts the deletion once more; nil: none
	lastHolder    *Handle       // that held it
	nextAttempt   time.Time     // of the next attempt at the deletion
	pause         time.Duration // before that
	moved         bool          // its handle was granted the same at another gateway
}

// group is the entries of one internal endpoint, or of a range of ports that is one unit,
// and the handles that want them. A
// request about one entry can break another: miniupnpd 2.3.1 on nftables keeps a list of
// firewall rules for each internal port. Whichever protocol a request is about, it
// removes the last rule, and appends that of the request if it renews. Renewing the
// entry that was granted first breaks those granted later, until they are renewed.
// Renewing the one granted last breaks nothing. A deletion breaks any. So requests of a
// group are made one at a time, and renewals in the order of the grants.
type group struct {
	Timer
	owner *Owner
	groupKey
	entries  []*entry
	handles  []*Handle
	queue    []*flow // the first one runs or waits for its turn
	renewing bool    // a background flow is queued
}

// groupKey is what a group is about.
type groupKey struct {
	internal netip.AddrPort // with the first port
	count    uint16         // of ports
}

// groupOf returns the group of a spec, which may be new. This host has one name, whatever
// the spec calls it.
func (o *Owner) groupOf(s *Spec) *group {
	addr := s.Internal.Addr().Unmap()
	if !addr.IsValid() || addr.IsUnspecified() || addr == o.key.Local {
		addr = netip.Addr{}
	}
	key := groupKey{netip.AddrPortFrom(addr, s.Internal.Port()), s.ports()}
	g := o.groups[key]
	if g == nil {
		g = &group{owner: o, groupKey: key}
		g.Fire = g.enqueueRenewals
		o.groups[key] = g
	}
	return g
}

// drop forgets the group if nothing is left of it.
func (g *group) deleteIfEmpty() {
	if len(g.entries) == 0 && len(g.handles) == 0 && len(g.queue) == 0 {
		g.owner.loop.Arm(&g.Timer, time.Time{})
		delete(g.owner.groups, g.groupKey)
	}
}

// inOrder returns the groups in the order of their internal endpoints.
func (o *Owner) sortedGroups() []*group {
	out := make([]*group, 0, len(o.groups))
	for _, g := range o.groups {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *group) int { return cmp.Or(a.internal.Compare(b.internal), cmp.Compare(a.count, b.count)) })
	return out
}

// all returns all entries, in the order of their internal endpoints.
func (o *Owner) allEntries() (out []*entry) {
	for _, g := range o.sortedGroups() {
		out = append(out, g.entries...)
	}
	return out
}

// entry returns the entry of a backend and member, or nil.
func (g *group) entry(backend string, m Member) *entry {
	for _, e := range g.entries {
		if e.Member == m && e.backend.name == backend && !e.superseded {
			return e
		}
	}
	return nil
}

// add puts an entry into the table.
func (g *group) add(e *entry) *entry {
	e.group = g
	g.entries = append(g.entries, e)
	return e
}

// remove takes an entry out of the table.
func (e *entry) remove() {
	e.clearDeletion()
	e.state = removed
	e.group.entries = without(e.group.entries, e)
	e.group.deleteIfEmpty()
}

// rival returns an entry of another backend of the gateway that is granted for the
// member, or nil. A ready-made backend is a gateway of its own.
func (g *group) heldByOtherBackend(backend string, m Member) *entry {
	for _, e := range g.entries {
		if e.Member == m && e.backend.name != backend && e.backend.config.Ready == nil && e.isHeld() {
			return e
		}
	}
	return nil
}

// elsewhere returns the entries of other groups that have the protocol and internal port.
// The internal port of SamePort follows the external one, and ranges can overlap.
func (g *group) inOtherGroups(protocol backends.Protocol, internal uint16) (out []*entry) {
	if !g.owner.portsVary && internal == g.internal.Port() {
		return nil
	}
	for _, e := range g.owner.allEntries() {
		if e.group != g && e.Protocol == protocol && e.internalPort() == internal && e.group.internal.Addr() == g.internal.Addr() {
			out = append(out, e)
		}
	}
	return out
}

// claim takes over what no handle holds of an internal port in other groups: what an
// earlier run left, and what is to be deleted. It fails if the port is held there, or is
// requested or deleted just now.
func (g *group) takeOverUnheld(m Member, internal uint16, backend *Backend) error {
	for _, e := range g.inOtherGroups(m.Protocol, internal) {
		isUnheld := len(e.holders) == 0 && (e.state == restored || e.state == pendingDelete)
		switch {
		case isUnheld && e.backend != backend: // it does not stand in the way of this one
		case isUnheld && len(e.group.queue) == 0 && (e.superseded || g.entry(backend.name, m) == nil):
			other := e.group
			other.entries = without(other.entries, e)
			e.Member = m
			g.add(e)
			other.deleteIfEmpty()
		default:
			return fmt.Errorf("%w: this program holds internal port %d", backends.ErrConflict, internal)
		}
	}
	return nil
}

// without returns a list without one element.
func without[T comparable](list []T, one T) []T {
	return slices.DeleteFunc(list, func(other T) bool { return other == one })
}

func (e *entry) isHeld() bool             { return e.state == active && len(e.holders) > 0 }
func (e *entry) isHeldBy(h *Handle) bool  { return slices.Contains(e.holders, h) }
func (e *entry) isHeldFor(c *Client) bool { return slices.ContainsFunc(e.holders, c.owns) }
func (e *entry) sharesHandle(other *entry) bool {
	return slices.ContainsFunc(e.holders, other.isHeldBy)
}

// isOnce reports whether no holder wants the entry to be renewed.
func (e *entry) isOnce() bool {
	return len(e.holders) > 0 && !slices.ContainsFunc(e.holders, func(h *Handle) bool { return !h.spec().Once })
}

// isExpired reports whether the lifetime is over.
func (e *entry) isExpired(now time.Time) bool {
	at := e.expires()
	return !at.IsZero() && !now.Before(at)
}

// expires returns when the lifetime is over, or the zero Time: not known, or never. What is
// to be deleted lasts also as long as it was requested for without a reply.
func (e *entry) expires() (at time.Time) {
	if e.granted != nil {
		if at = e.granted.Expires(); at.IsZero() {
			return at
		}
	}
	if e.deletion != nil && e.unconfirmedUntil.After(at) {
		return e.unconfirmedUntil
	}
	return at
}

// noReply records that the last request got no reply. The gateway may have granted it, or
// what was requested before.
func (e *entry) recordNoReply() {
	if until := time.Now().Add(min(e.spec.Lifetime, maxLifetime)); until.After(e.unconfirmedUntil) {
		e.unconfirmedUntil = until
	}
	e.unconfirmed = e.unconfirmed || e.state != active
}

// internalPort returns the internal port that the entry has or is requested with.
func (e *entry) internalPort() uint16 {
	switch {
	case e.granted != nil:
		return e.granted.Internal.Port()
	case e.spec != nil && e.spec.SamePort:
		return e.requestedExternal
	}
	return e.requestedInternal()
}

// recordOf returns what the state file has of a mapping of the entry.
func (e *entry) recordOf(m backends.Mapping) state.Record {
	r := state.Record{Port: e.group.internal.Port(), Mapping: m}
	if e.group.count > 1 {
		r.Count = e.group.count
	}
	return r
}

// requestedPort returns the internal port of the entry's member.
func (e *entry) requestedInternal() uint16 { return e.group.internal.Port() + e.Offset }

// externalPort returns the external port that the entry has or is requested with.
func (e *entry) externalPort() uint16 {
	if e.granted != nil {
		return e.granted.External.Port()
	}
	return e.requestedExternal
}

// grantOrder is when an entry was granted, to order the entries of a group as the
// gateway's list does. Times count from Owner.start; 0 is none.
type grantOrder struct {
	created time.Duration // when the gateway granted it anew, and not only renewed it
	lost    time.Duration // when the gateway lost it, if it told and has not granted it since
	// earlier are the grants before the last one, for a restart that is noticed only then.
	earlier [2]time.Duration
}

// record applies the answer to a request that was granted. Anew says that it was no
// renewal. The grant counts, not the request: what was in flight when a restart was noticed
// may be granted before what is requested because of it.
func (e *entry) record(m *backends.Mapping, isNew bool) {
	o, order := e.group.owner, &e.order
	at := m.Granted.Sub(o.start)
	if isNew || e.granted == nil {
		*order = grantOrder{created: at, lost: order.lost}
	} else {
		order.earlier = [2]time.Duration{order.earlier[1], e.granted.Granted.Sub(o.start)}
	}
	if order.lost != 0 && at >= order.lost {
		order.created, order.lost = at, 0
	}
	e.state, e.granted, e.err, e.failures, e.unconfirmed = active, m, nil, 0, false
	e.mustRenew, e.unconfirmedUntil = false, time.Time{}
	now, lost := time.Now(), e.backend.lost
	predatesLoss := !lost.IsZero() && m.Granted.Before(lost) // the request was in flight
	verify := !e.verifyAt.IsZero()
	e.lost = predatesLoss || e.lost && verify && lost.IsZero()
	switch e.doubtful = verify || predatesLoss; {
	case predatesLoss:
		e.nextRequest = now
	case verify:
		e.nextRequest = e.verifyAt // and not at once: the pace of recoveries holds for it too
	default:
		e.nextRequest = e.nextRenewal(now)
	}
}

// markLost records that the gateway lost its state at a time that it told, and reports
// whether the entry was part of it. A request in flight may have been sent before.
func (e *entry) markLost(since time.Time) bool {
	o, order := e.group.owner, &e.order
	at := since.Sub(o.start)
	if e.granted == nil || e.granted.Granted.Before(since) {
		order.lost = at
		return true
	}
	order.created = e.granted.Granted.Sub(o.start)
	for _, earlier := range order.earlier {
		if earlier >= at && earlier < order.created {
			order.created = earlier
		}
	}
	return false
}

// compareOrder orders entries as the gateway's list will be: what was lost is granted
// anew, and so comes after what was granted since.
func compareOrder(a, b *entry) int {
	isLost := func(e *entry) int { return cmp.Compare(min(e.order.lost, 1), 0) }
	return cmp.Or(isLost(a)-isLost(b), cmp.Compare(a.order.created, b.order.created))
}
