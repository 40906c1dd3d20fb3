package gatewaytest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// Entry is a row of the gateway's table.
type Entry struct {
	Protocol backends.Protocol
	// Internal is where inbound traffic goes. Port 0 is all ports, and Protocol 0
	// with it all protocols; then External has port 0 too.
	Internal netip.AddrPort
	// External is the endpoint that outside hosts use. Of a pinhole in the IPv6
	// firewall it is Internal.
	External netip.AddrPort
	// Remaining is the lifetime left on the gateway's clock, or
	// backends.Forever. In AddMapping, zero is Forever too.
	Remaining time.Duration
	// Service is the name of the protocol that made it ("natpmp", "pcp", "upnp"), or of what
	// else did. In AddMapping, empty is "admin".
	Service string
	// Disabled entries are listed and forward nothing.
	Disabled bool
	// Static entries cannot be deleted by protocol and survive Restart.
	Static bool
	// Description is what the protocol carried, if it can.
	Description string
	// Filters admit only the outside hosts that one of them matches. Without any, all are
	// admitted.
	Filters []pcp.Filter
	// Remote is the only outside endpoint of an entry that PCP's PEER made, as an
	// outgoing packet would. The zero value: not such an entry.
	Remote netip.AddrPort
}

// admits reports whether the outside host may use the entry.
func (e Entry) admits(from netip.AddrPort) bool {
	if e.Disabled {
		return false
	}
	if e.Remote.IsValid() {
		return from == e.Remote
	}
	for _, f := range e.Filters {
		if f.Prefix.Contains(from.Addr()) && (f.Port == 0 || f.Port == from.Port()) {
			return true
		}
	}
	return len(e.Filters) == 0
}

var (
	errFull  = fmt.Errorf("gatewaytest: %w: the table is full", backends.ErrNoResources)
	errTaken = fmt.Errorf("gatewaytest: %w", backends.ErrConflict)
	errOwner = fmt.Errorf("gatewaytest: %w: the entry has another owner", backends.ErrNotAuthorized)
	errFixed = fmt.Errorf("gatewaytest: %w: the entry cannot be deleted", backends.ErrNotAuthorized)
	errNone  = fmt.Errorf("gatewaytest: %w: no such entry", backends.ErrInvalid)
)

// endpoint is one side of a mapping. An outside endpoint with the zero address
// is on whatever external address the gateway has.
type endpoint struct {
	protocol backends.Protocol
	netip.AddrPort
}

// row is an entry as the table keeps it.
type row struct {
	Entry             // Remaining is filled in when the entry leaves the table
	claim   *claim    // nil: anybody on the internal host is the owner
	expires time.Time // zero: never
	seq     uint64    // in order of creation
	used    time.Time // when it was last made, renewed, or used from outside
	packets uint64    // connections and datagrams from outside
	id      uint16    // of a UPnP pinhole
}

// claim is what a protocol knows of an entry's owner. It is replaced, never changed.
type claim struct {
	// secret proves who the owner is.
	secret [12]byte
	// client is where the owner's last request came from.
	client netip.AddrPort
	// exact owners want no other external endpoint than this one.
	exact    bool
	external netip.Addr
}

// wish asks the table for an entry: Remaining is the lifetime, External.Port
// may be 0.
type wish struct {
	Entry
	// exact fails with errTaken rather than accept another port.
	exact bool
	// another makes a second entry for an internal endpoint where the wished
	// port differs from the first one's.
	another bool
	// claim is the owner's, who has to be the same unless loose.
	claim *claim
	loose bool
	// edit, where not nil, changes the entry before it is granted, or refuses.
	edit func(*Entry) error
}

// table is the router's mappings, lifetimes and ports. It knows no protocol.
// Rows share an outside endpoint only where they have the same internal one and
// differ in the remote host.
type table struct {
	clock *clock
	limit int
	// idle, where not 0, drops rows of UPnP that nobody used for so long while
	// there are more than idleAbove.
	idle      time.Duration
	idleAbove int

	mu       sync.Mutex
	outside  map[endpoint][]*row
	inside   map[endpoint][]*row
	size     int
	soonest  time.Time // no entry expires before it
	nextSeq  uint64
	nextID   uint16 // of pinholes
	nextHigh int    // survives clear, so that a client that forgot its port notices
}

func newTable(c *clock, limit int) *table {
	return &table{
		clock: c, limit: limit,
		outside: make(map[endpoint][]*row),
		inside:  make(map[endpoint][]*row),
	}
}

// grant returns the entry that the internal endpoint has already, with its
// lifetime renewed, or a new one. It fails with errFull, with errTaken and
// errOwner beside the entry in the way, if there is one, or as edit does; then
// nothing has changed.
func (t *table) grant(w wish) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	if r := t.held(w); r != nil {
		return t.renew(r, w, now)
	}
	if t.limit != 0 && t.size >= t.limit {
		return Entry{}, errFull
	}
	port, err := t.choose(w)
	if err != nil {
		return t.inTheWay(w, now), err
	}
	r := &row{Entry: w.Entry, claim: w.claim}
	r.Filters = slices.Clone(w.Filters)
	r.External = netip.AddrPortFrom(w.External.Addr(), port)
	if w.edit != nil {
		if err := w.edit(&r.Entry); err != nil {
			return Entry{}, err
		}
	}
	t.live(r, now.Add(w.Remaining), w.Remaining == backends.Forever)
	t.create(r, now)
	return t.leave(r, now), nil
}

// renew gives a row another lifetime, and what else its owner wants.
func (t *table) renew(r *row, w wish, now time.Time) (Entry, error) {
	switch {
	case r.claim != nil && w.claim != nil && !w.loose && r.claim.secret != w.claim.secret:
		return t.leave(r, now), errOwner
	case w.exact && w.External.Port() != r.External.Port():
		return t.leave(r, now), errTaken
	case r.Static:
		granted := t.leave(r, now)
		granted.Remaining = w.Remaining
		return granted, nil
	}
	e := t.leave(r, now)
	if w.edit != nil {
		if err := w.edit(&e); err != nil {
			return Entry{}, err
		}
		r.Filters, r.Description = e.Filters, e.Description
	}
	expires, forever := now.Add(w.Remaining), w.Remaining == backends.Forever
	switch {
	case w.claim != nil:
		r.claim, r.Service = w.claim, w.Service
	case r.claim != nil && (r.expires.IsZero() || expires.Before(r.expires)):
		// Who proves nothing can prolong what has an owner, and no more.
		expires, forever = r.expires, r.expires.IsZero()
	}
	t.live(r, expires, forever)
	return t.leave(r, now), nil
}

// held returns the entry that a wish renews, or nil.
func (t *table) held(w wish) *row {
	for _, r := range t.inside[endpoint{w.Protocol, w.Internal}] {
		if r.Remote != w.Remote || r.Service == serviceUPnP {
			continue
		}
		if !w.another || w.External.Port() == 0 || w.External.Port() == r.External.Port() {
			return r
		}
	}
	return nil
}

// live sets when the row expires.
func (t *table) live(r *row, expires time.Time, forever bool) {
	r.expires = time.Time{}
	if forever {
		return
	}
	r.expires = expires
	if t.soonest.IsZero() || r.expires.Before(t.soonest) {
		t.soonest = r.expires
	}
}

// leave is the row as others may see it.
func (t *table) leave(r *row, now time.Time) Entry {
	e := r.Entry
	e.Filters = slices.Clone(e.Filters)
	e.Remaining = backends.Forever
	if !r.expires.IsZero() {
		e.Remaining = r.expires.Sub(now)
	}
	return e
}

// create takes a new row in.
func (t *table) create(r *row, now time.Time) {
	t.nextSeq++
	r.seq, r.used = t.nextSeq, now
	t.add(r)
}

// add takes a row in.
func (t *table) add(r *row) {
	out, in := endpoint{r.Protocol, r.External}, endpoint{r.Protocol, r.Internal}
	t.outside[out] = append(t.outside[out], r)
	t.inside[in] = append(t.inside[in], r)
	t.size++
}

// drop forgets a row.
func (t *table) drop(r *row) {
	cut(t.outside, endpoint{r.Protocol, r.External}, r)
	cut(t.inside, endpoint{r.Protocol, r.Internal}, r)
	t.size--
}

// cut takes a row out of an index, leaving no empty lists behind. Lists that
// somebody walks stay as they are.
func cut(index map[endpoint][]*row, at endpoint, r *row) {
	rest := slices.DeleteFunc(slices.Clone(index[at]), func(other *row) bool { return other == r })
	if len(rest) == 0 {
		delete(index, at)
		return
	}
	index[at] = rest
}

// sweep drops what has expired, and returns the time.
func (t *table) sweep() time.Time {
	now := t.clock.now()
	if t.idle == 0 && (t.soonest.IsZero() || now.Before(t.soonest)) {
		return now
	}
	t.soonest = time.Time{}
	for r := range t.rows {
		switch {
		case t.forgotten(r, now):
			t.drop(r)
		case r.expires.IsZero():
		case !now.Before(r.expires):
			t.drop(r)
		case t.soonest.IsZero() || r.expires.Before(t.soonest):
			t.soonest = r.expires
		}
	}
	return now
}

// forgotten reports whether the row is one of UPnP that is idle for too long.
func (t *table) forgotten(r *row, now time.Time) bool {
	return t.idle != 0 && r.Service == serviceUPnP && !r.Static && t.size > t.idleAbove && !now.Before(r.used.Add(t.idle))
}

// rows yields all rows; those yielded may be dropped meanwhile.
func (t *table) rows(yield func(*row) bool) {
	for _, some := range t.outside {
		for _, r := range some {
			if !yield(r) {
				return
			}
		}
	}
}

// inOrder lists all rows, the oldest first.
func (t *table) inOrder() []*row {
	all := slices.Collect(t.rows)
	slices.SortFunc(all, func(a, b *row) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// entries is a snapshot, by protocol and external endpoint.
func (t *table) entries() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	all := make([]Entry, 0, t.size)
	for _, r := range t.inOrder() {
		all = append(all, t.leave(r, now))
	}
	slices.SortStableFunc(all, func(a, b Entry) int {
		return cmp.Or(
			cmp.Compare(a.Protocol, b.Protocol), a.External.Compare(b.External), a.Remote.Compare(b.Remote),
			cmp.Compare(a.Service, b.Service))
	})
	return all
}

// remove deletes the entries of an internal endpoint, with port 0 those of the
// whole host. It reports whether one that stays was among them: a static one,
// or one whose owner has to prove it.
func (t *table) remove(internal endpoint) (stays bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep()
	for _, r := range t.of(internal) {
		switch {
		case r.Remote.IsValid(): // ends by itself
		case r.Static, r.claim != nil:
			stays = true
		default:
			t.drop(r)
		}
	}
	return stays
}

// of lists the rows of an internal endpoint, with port 0 those of the host.
func (t *table) of(internal endpoint) []*row {
	if internal.Port() != 0 {
		return withoutUPnP(t.inside[internal])
	}
	var rows []*row
	for in, some := range t.inside {
		if in.protocol == internal.protocol && in.Addr() == internal.Addr() {
			rows = append(rows, withoutUPnP(some)...)
		}
	}
	return rows
}

// withoutUPnP is the rows that NAT-PMP and PCP know of.
func withoutUPnP(rows []*row) []*row {
	return slices.DeleteFunc(slices.Clone(rows), func(r *row) bool { return r.Service == serviceUPnP })
}

// revoke deletes the entries of just this internal endpoint for who knows the
// secret. It fails with errNone, errFixed, or errOwner and the entry.
func (t *table) revoke(internal endpoint, secret [12]byte) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	rows := withoutUPnP(t.inside[internal])
	if len(rows) == 0 {
		return Entry{}, errNone
	}
	inbound := 0
	for _, r := range rows {
		switch {
		case r.Remote.IsValid():
			continue
		case r.Static:
			return t.leave(r, now), errFixed
		case r.claim != nil && r.claim.secret != secret:
			return t.leave(r, now), errOwner
		}
		inbound++
	}
	if inbound == 0 {
		return t.leave(rows[0], now), errFixed
	}
	for _, r := range rows {
		if !r.Remote.IsValid() {
			t.drop(r)
		}
	}
	return Entry{}, nil
}

// outbound finds the entry of an internal endpoint to a remote host.
func (t *table) outbound(internal endpoint, remote netip.AddrPort) (Entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	for _, r := range t.inside[internal] {
		if r.Remote == remote {
			return t.leave(r, now), true
		}
	}
	return Entry{}, false
}

// evict deletes the entries of an outside endpoint, also static ones, and
// reports whether there was one.
func (t *table) evict(at endpoint) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep()
	rows := t.outside[at]
	for _, r := range rows {
		t.drop(r)
	}
	return len(rows) != 0
}

// clear forgets all but the static entries.
func (t *table) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nextID = 0 // as in a daemon that starts again
	for r := range t.rows {
		if !r.Static {
			t.drop(r)
		}
	}
}

// claimed is an entry with its owner.
type claimed struct {
	Entry
	claim
}

// claims lists the entries whose owners are known. Those for which lost is
// true are deleted.
func (t *table) claims(lost func(claimed) bool) []claimed {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	var all []claimed
	for r := range t.rows {
		if r.claim == nil {
			continue
		}
		c := claimed{t.leave(r, now), *r.claim}
		all = append(all, c)
		if lost(c) {
			t.drop(r)
		}
	}
	slices.SortFunc(all, func(a, b claimed) int { return a.External.Compare(b.External) })
	return all
}
