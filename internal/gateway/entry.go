package gateway

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/holders"
	"github.com/natforward/goforward/internal/state"
)

// entryState is the state of an entry.
type entryState uint8

const (
	creating      entryState = iota // requested, and not granted yet
	active                          // granted
	pendingDelete                   // its deletion got no reply or was refused, and is retried
	restored                        // created by an earlier run of the program
	removed                         // no longer in the table
)

// entry is a mapping on the gateway. Several handles can hold it.
type entry struct {
	Member
	group             *group
	backend           *Backend
	state             entryState
	lost              bool              // the gateway has lost it, as far as the owner can tell
	doubtful          bool              // the gateway may have lost it since the last grant
	verifyAt          time.Time         // if it became doubtful after the last request was sent: the time of the next request
	mustRenew         bool              // the next renewal pass includes it
	listing           listing           // whether the table of another backend lists it
	superseded        bool              // a former version of another entry, to be deleted
	unconfirmed       bool              // a request got no reply: the gateway may have granted it
	requestedExternal uint16            // the external port of the last request
	failures          uint16            // consecutive failed renewals
	spec              *Spec             // the spec of the last request
	granted           *backends.Mapping // immutable, replaced by each grant; nil: not granted yet
	unconfirmedUntil  time.Time         // the longest lifetime of requests without a reply ends then; zero: there is none
	holders           []*Handle
	held              [2]holders.Key // the endpoints that other programs of this user know that this one holds
	err               error          // error of the last request, or nil
	nextRequest       time.Time
	checked           time.Duration // when the entry was last granted, or its check began, since Owner.start
	order             grantOrder
	deletion          *deletion // set if the entry is to be deleted
}

// deletion is the state of an entry that no handle holds any more, or that an earlier run
// created.
type deletion struct {
	client        *Client       // the client that is responsible: it reports and records the deletion; may be nil
	closingClient *Client       // the client whose Close attempts the deletion once more, or nil
	lastHolder    *Handle       // the last handle that held the entry
	nextAttempt   time.Time     // time of the next attempt
	pause         time.Duration // the pause before nextAttempt
	moved         bool          // the handle is granted at another gateway now
}

// group holds the entries of one internal endpoint, or of one range of ports, and the handles
// that request them. The owner makes one request of a group at a time, and renews its entries
// in the order of their grants. The reason is a defect of miniupnpd 2.3.1 on nftables: a
// request for one entry can break another. The gateway keeps a list of firewall rules for
// each internal port. Each request removes the last rule, regardless of its protocol; a
// renewal then appends its own rule. If the oldest entry is renewed, all later ones are
// broken until they are renewed too. If the newest entry is renewed, nothing breaks. A
// deletion can break any entry.
type group struct {
	Timer
	owner *Owner
	groupKey
	entries  []*entry
	handles  []*Handle
	queue    []*flow // the first flow runs or waits to be dispatched
	renewing bool    // a flow that renews the group is queued
}

// groupKey identifies a group.
type groupKey struct {
	internal netip.AddrPort // with the first port of a range; the zero address means this host
	count    uint16         // number of ports
}

// groupOf returns the group of a spec and creates it if necessary. All addresses of this host
// in specs mean the same group.
func (o *Owner) groupOf(s *Spec) *group {
	addr := s.Internal.Addr().Unmap()
	if !addr.IsValid() || addr.IsUnspecified() || addr == o.key.Local {
		addr = netip.Addr{}
	}
	key := groupKey{netip.AddrPortFrom(addr, s.Internal.Port()), s.ports()}
	g := o.groups[key]
	if g == nil {
		g = &group{owner: o, groupKey: key}
		g.Fire = func() { g.enqueueRenewals(ctxsync.Renewal) }
		o.groups[key] = g
	}
	return g
}

// deleteIfEmpty deletes the group if it has no entries, handles or flows.
func (g *group) deleteIfEmpty() {
	if len(g.entries) == 0 && len(g.handles) == 0 && len(g.queue) == 0 {
		g.owner.loop.Arm(&g.Timer, time.Time{})
		delete(g.owner.groups, g.groupKey)
	}
}

// sortedGroups returns the groups, sorted by internal endpoint.
func (o *Owner) sortedGroups() []*group {
	out := make([]*group, 0, len(o.groups))
	for _, g := range o.groups {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *group) int { return cmp.Or(a.internal.Compare(b.internal), cmp.Compare(a.count, b.count)) })
	return out
}

// allEntries returns all entries, sorted by internal endpoint.
func (o *Owner) allEntries() (out []*entry) {
	for _, g := range o.sortedGroups() {
		out = append(out, g.entries...)
	}
	return out
}

// entry returns the entry of a backend and member, or nil. It ignores superseded entries.
func (g *group) entry(backend string, m Member) *entry {
	for _, e := range g.entries {
		if e.Member == m && e.backend.name == backend && !e.superseded {
			return e
		}
	}
	return nil
}

// add adds an entry to the table.
func (g *group) add(e *entry) *entry {
	e.group = g
	g.entries = append(g.entries, e)
	return e
}

// remove removes an entry from the table.
func (e *entry) remove() {
	e.clearDeletion()
	e.release()
	e.state = removed
	e.group.entries = without(e.group.entries, e)
	e.group.deleteIfEmpty()
}

// key returns the key of an internal or external port in the registry of all programs of this
// user, or 0 if the port is 0.
func (e *entry) key(port uint16, external bool) holders.Key {
	if port == 0 {
		return 0
	}
	o, host := e.group.owner, e.group.internal.Addr()
	if !host.IsValid() {
		host = o.key.Local
	}
	endpoint := holders.Endpoint{Gateway: o.key.Gateway, Host: host, Protocol: e.Protocol, External: external, Port: port}
	switch {
	case external && e.granted != nil:
		endpoint.Remote = e.granted.Remote.Addr()
	case external:
		endpoint.Remote = e.spec.Remote.Addr()
	}
	return endpoint.Key()
}

// hold makes this program a holder of the entry's internal and external ports, and no longer
// of the former ones. Other programs of this user then do not delete the mapping. It returns
// false if one of them is deleting it at the moment.
func (e *entry) hold(internal, external uint16) bool {
	before := e.held
	e.held = [2]holders.Key{e.key(internal, false), e.key(external, true)}
	ok := e.backend.programs.Hold(e.held[:]...)
	e.backend.programs.Release(before[:]...)
	return ok
}

// release undoes hold.
func (e *entry) release() {
	e.backend.programs.Release(e.held[:]...)
	e.held = [2]holders.Key{}
}

// deletionKey returns the key of the endpoint that identifies the mapping on the gateway: the
// last program that holds it must delete the mapping. Several mappings of UPnP can have the
// same internal port.
func (e *entry) deletionKey() holders.Key {
	if port := e.externalPort(); e.backend.name == upnp.Name && e.group.owner.key.Gateway.Addr().Is4() && port != 0 {
		return e.key(port, true)
	}
	return e.key(e.internalPort(), false)
}

// heldByOtherBackend returns a held entry for the same member by another backend of this
// gateway, or nil. Ready-made backends do not count: each is a gateway of its own.
func (g *group) heldByOtherBackend(backend string, m Member) *entry {
	for _, e := range g.entries {
		if e.Member == m && e.backend.name != backend && e.backend.config.Ready == nil && e.isHeld() {
			return e
		}
	}
	return nil
}

// inOtherGroups returns the entries of other groups with the same protocol and internal port.
// Such entries exist because SamePort changes the internal port, and because ranges can
// overlap.
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

// takeOverUnheld moves entries with the same internal port that no handle holds from other
// groups to this one: restored entries and pending deletions. It fails if a handle holds the
// port in another group, or if a request for the port is in flight there.
func (g *group) takeOverUnheld(m Member, internal uint16, backend *Backend) error {
	for _, e := range g.inOtherGroups(m.Protocol, internal) {
		isUnheld := len(e.holders) == 0 && (e.state == restored || e.state == pendingDelete)
		switch {
		case isUnheld && e.backend != backend: // it does not conflict with this backend
		case isUnheld && len(e.group.queue) == 0 && (e.superseded || g.entry(backend.name, m) == nil):
			other := e.group
			other.entries = without(other.entries, e)
			e.Member = m
			g.add(e)
			other.deleteIfEmpty()
		default:
			return fmt.Errorf("%w: this program already uses internal port %d", backends.ErrConflict, internal)
		}
	}
	return nil
}

// without returns a list without the given element.
func without[T comparable](list []T, element T) []T {
	return slices.DeleteFunc(list, func(other T) bool { return other == element })
}

func (e *entry) isHeld() bool             { return e.state == active && len(e.holders) > 0 }
func (e *entry) isHeldBy(h *Handle) bool  { return slices.Contains(e.holders, h) }
func (e *entry) isHeldFor(c *Client) bool { return slices.ContainsFunc(e.holders, c.owns) }
func (e *entry) sharesHandle(other *entry) bool {
	return slices.ContainsFunc(e.holders, other.isHeldBy)
}

// isOnce reports whether all holders have Once, so that the entry is not renewed.
func (e *entry) isOnce() bool {
	return len(e.holders) > 0 && !slices.ContainsFunc(e.holders, func(h *Handle) bool { return !h.spec().Once })
}

// isExpired reports whether the lifetime has ended.
func (e *entry) isExpired(now time.Time) bool {
	at := e.expires()
	return !at.IsZero() && !now.Before(at)
}

// expires returns the end of the lifetime, or the zero Time if it is unknown or there is no
// end. For an entry that is to be deleted, requests without a reply count as if they had been
// granted.
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

// recordNoReply records that the last request got no reply. The gateway may have granted it,
// so that the entry lasts longer than the last known grant.
func (e *entry) recordNoReply() {
	if until := time.Now().Add(min(e.spec.Lifetime, maxLifetime)); until.After(e.unconfirmedUntil) {
		e.unconfirmedUntil = until
	}
	e.unconfirmed = e.unconfirmed || e.state != active
}

// internalPort returns the granted internal port, or else the requested one.
func (e *entry) internalPort() uint16 {
	switch {
	case e.granted != nil:
		return e.granted.Internal.Port()
	case e.spec != nil && e.spec.SamePort:
		return e.requestedExternal
	}
	return e.requestedInternal()
}

// recordOf returns the record of a mapping of the entry for the state file.
func (e *entry) recordOf(m backends.Mapping) state.Record {
	r := state.Record{Port: e.group.internal.Port(), Mapping: m}
	if e.group.count > 1 {
		r.Count = e.group.count
	}
	return r
}

// requestedInternal returns the internal port of the entry's member. It ignores SamePort.
func (e *entry) requestedInternal() uint16 { return e.group.internal.Port() + e.Offset }

// externalPort returns the granted external port, or else the requested one.
func (e *entry) externalPort() uint16 {
	if e.granted != nil {
		return e.granted.External.Port()
	}
	return e.requestedExternal
}

// grantOrder orders the entries of a group as the gateway's own list does. Its times are
// durations since Owner.start; 0 means none.
type grantOrder struct {
	created time.Duration // time of the grant that created the mapping; a renewal does not change it
	lost    time.Duration // when the gateway lost it, if the gateway reported that and has not granted it since
	// earlier has the two grants before the last one. They are needed if a restart is noticed
	// only after a renewal.
	earlier [2]time.Duration
}

// record applies a grant. If isNew is true, the request was not a renewal. The order of the
// entries depends on m.Granted, the time at which the answered request was sent, and not on
// the time at which a restart was noticed. A request that was in flight at that moment may
// have been granted after the restart, and before the requests that the restart causes.
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
	e.hold(m.Internal.Port(), m.External.Port())
	if e.checked = at; isNew {
		e.listing = notLookedUp
		o.expectFirstLookUp(e)
	}
	o.armChecks(time.Now())
	now, lost := time.Now(), e.backend.lost
	predatesLoss := !lost.IsZero() && m.Granted.Before(lost) // the request was in flight when the gateway lost its state
	verify := !e.verifyAt.IsZero()
	e.lost = predatesLoss || e.lost && verify && lost.IsZero()
	switch e.doubtful = verify || predatesLoss; {
	case predatesLoss:
		e.nextRequest = now
	case verify:
		e.nextRequest = e.verifyAt // not at once: verification is rate-limited
	default:
		e.nextRequest = e.nextRenewal(now)
	}
}

// markLost records that the gateway lost its state at the given time, which the gateway
// reported. It returns whether the entry counts as lost. An entry without a grant does, because
// its request may be in flight and may have been sent before that time.
func (e *entry) markLost(since time.Time) bool {
	o, order := e.group.owner, &e.order
	lostAt := since.Sub(o.start)
	if e.granted == nil || e.granted.Granted.Before(since) {
		order.lost = lostAt
		return true
	}
	order.created = e.granted.Granted.Sub(o.start)
	for _, earlier := range order.earlier {
		if earlier >= lostAt && earlier < order.created {
			order.created = earlier
		}
	}
	return false
}

// compareOrder orders entries as the gateway's list will be after the renewals. Lost entries
// are created again, and therefore come last.
func compareOrder(a, b *entry) int {
	isLost := func(e *entry) int { return cmp.Compare(min(e.order.lost, 1), 0) }
	return cmp.Or(isLost(a)-isLost(b), cmp.Compare(a.order.created, b.order.created))
}
