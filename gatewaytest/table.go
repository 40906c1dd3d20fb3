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
	errTableFull    = fmt.Errorf("gatewaytest: %w: the table is full", backends.ErrNoResources)
	errPortTaken    = fmt.Errorf("gatewaytest: %w", backends.ErrConflict)
	errOtherOwner   = fmt.Errorf("gatewaytest: %w: the entry has another owner", backends.ErrNotAuthorized)
	errNotDeletable = fmt.Errorf("gatewaytest: %w: the entry cannot be deleted", backends.ErrNotAuthorized)
	errNoEntry      = fmt.Errorf("gatewaytest: %w: no such entry", backends.ErrInvalid)
)

// endpoint is one side of a mapping. An outside endpoint with the zero address
// is on whatever external address the gateway has.
type endpoint struct {
	protocol backends.Protocol
	netip.AddrPort
}

// row is an entry as the table keeps it.
type row struct {
	Entry               // Remaining is filled in when the entry leaves the table
	host     *entryHost // nil: anybody on the internal host is the owner
	expires  time.Time  // zero: never
	seq      uint64     // in order of creation
	lastUsed time.Time  // when it was last made, renewed, or used from outside
	packets  uint64     // connections and datagrams from outside
	id       uint16     // of a UPnP pinhole
}

// claim is what a protocol knows of an entry's owner. It is replaced, never changed.
type entryHost struct {
	// secret proves who the owner is.
	nonce [12]byte
	// client is where the owner's last request came from.
	source netip.AddrPort
	// exact owners want no other external endpoint than this one.
	preferFailure bool
	externalAddr  netip.Addr
}

// wish asks the table for an entry: Remaining is the lifetime, External.Port
// may be 0.
type mappingSpec struct {
	Entry
	// exact fails with errTaken rather than accept another port.
	exactPort bool
	// another makes a second entry for an internal endpoint where the wished
	// port differs from the first one's.
	allowSecond bool
	// claim is the owner's, who has to be the same unless loose.
	host        *entryHost
	ignoreNonce bool
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
	idleAfter time.Duration
	idleAbove int

	mu           sync.Mutex
	byExternal   map[endpoint][]*row
	byInternal   map[endpoint][]*row
	size         int
	nextExpiry   time.Time // no entry expires before it
	nextSeq      uint64
	nextID       uint16 // of pinholes
	nextHighPort int    // survives clear, so that a client that forgot its port notices
}

func newTable(c *clock, limit int) *table {
	return &table{
		clock: c, limit: limit,
		byExternal: make(map[endpoint][]*row),
		byInternal: make(map[endpoint][]*row),
	}
}

// grant returns the entry that the internal endpoint has already, with its
// lifetime renewed, or a new one. It fails with errFull, with errTaken and
// errOwner beside the entry in the way, if there is one, or as edit does; then
// nothing has changed.
func (t *table) grant(spec mappingSpec) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	if r := t.existing(spec); r != nil {
		return t.renew(r, spec, now)
	}
	if t.limit != 0 && t.size >= t.limit {
		return Entry{}, errTableFull
	}
	port, err := t.choosePort(spec)
	if err != nil {
		return t.conflicting(spec, now), err
	}
	r := &row{Entry: spec.Entry, host: spec.host}
	r.Filters = slices.Clone(spec.Filters)
	r.External = netip.AddrPortFrom(spec.External.Addr(), port)
	if spec.edit != nil {
		if err := spec.edit(&r.Entry); err != nil {
			return Entry{}, err
		}
	}
	t.setExpiry(r, now.Add(spec.Remaining), spec.Remaining == backends.Forever)
	t.insert(r, now)
	return t.snapshot(r, now), nil
}

// renew gives a row another lifetime, and what else its owner wants.
func (t *table) renew(r *row, spec mappingSpec, now time.Time) (Entry, error) {
	switch {
	case r.host != nil && spec.host != nil && !spec.ignoreNonce && r.host.nonce != spec.host.nonce:
		return t.snapshot(r, now), errOtherOwner
	case spec.exactPort && spec.External.Port() != r.External.Port():
		return t.snapshot(r, now), errPortTaken
	case r.Static:
		granted := t.snapshot(r, now)
		granted.Remaining = spec.Remaining
		return granted, nil
	}
	e := t.snapshot(r, now)
	if spec.edit != nil {
		if err := spec.edit(&e); err != nil {
			return Entry{}, err
		}
		r.Filters, r.Description = e.Filters, e.Description
	}
	expires, forever := now.Add(spec.Remaining), spec.Remaining == backends.Forever
	switch {
	case spec.host != nil:
		r.host, r.Service = spec.host, spec.Service
	case r.host != nil && (r.expires.IsZero() || expires.Before(r.expires)):
		// Who proves nothing can prolong what has an owner, and no more.
		expires, forever = r.expires, r.expires.IsZero()
	}
	t.setExpiry(r, expires, forever)
	return t.snapshot(r, now), nil
}

// held returns the entry that a wish renews, or nil.
func (t *table) existing(spec mappingSpec) *row {
	for _, r := range t.byInternal[endpoint{spec.Protocol, spec.Internal}] {
		if r.Remote != spec.Remote || r.Service == serviceUPnP {
			continue
		}
		if !spec.allowSecond || spec.External.Port() == 0 || spec.External.Port() == r.External.Port() {
			return r
		}
	}
	return nil
}

// live sets when the row expires.
func (t *table) setExpiry(r *row, expires time.Time, forever bool) {
	r.expires = time.Time{}
	if forever {
		return
	}
	r.expires = expires
	if t.nextExpiry.IsZero() || r.expires.Before(t.nextExpiry) {
		t.nextExpiry = r.expires
	}
}

// leave is the row as others may see it.
func (t *table) snapshot(r *row, now time.Time) Entry {
	e := r.Entry
	e.Filters = slices.Clone(e.Filters)
	e.Remaining = backends.Forever
	if !r.expires.IsZero() {
		e.Remaining = r.expires.Sub(now)
	}
	return e
}

// create takes a new row in.
func (t *table) insert(r *row, now time.Time) {
	t.nextSeq++
	r.seq, r.lastUsed = t.nextSeq, now
	t.addToIndexes(r)
}

// add takes a row in.
func (t *table) addToIndexes(r *row) {
	out, in := endpoint{r.Protocol, r.External}, endpoint{r.Protocol, r.Internal}
	t.byExternal[out] = append(t.byExternal[out], r)
	t.byInternal[in] = append(t.byInternal[in], r)
	t.size++
}

// drop forgets a row.
func (t *table) deleteRow(r *row) {
	removeFromIndex(t.byExternal, endpoint{r.Protocol, r.External}, r)
	removeFromIndex(t.byInternal, endpoint{r.Protocol, r.Internal}, r)
	t.size--
}

// cut takes a row out of an index, leaving no empty lists behind. Lists that
// somebody walks stay as they are.
func removeFromIndex(index map[endpoint][]*row, at endpoint, r *row) {
	rest := slices.DeleteFunc(slices.Clone(index[at]), func(other *row) bool { return other == r })
	if len(rest) == 0 {
		delete(index, at)
		return
	}
	index[at] = rest
}

// sweep drops what has expired, and returns the time.
func (t *table) deleteExpired() time.Time {
	now := t.clock.now()
	if t.idleAfter == 0 && (t.nextExpiry.IsZero() || now.Before(t.nextExpiry)) {
		return now
	}
	t.nextExpiry = time.Time{}
	for r := range t.rows {
		switch {
		case t.isIdle(r, now):
			t.deleteRow(r)
		case r.expires.IsZero():
		case !now.Before(r.expires):
			t.deleteRow(r)
		case t.nextExpiry.IsZero() || r.expires.Before(t.nextExpiry):
			t.nextExpiry = r.expires
		}
	}
	return now
}

// forgotten reports whether the row is one of UPnP that is idle for too long.
func (t *table) isIdle(r *row, now time.Time) bool {
	return t.idleAfter != 0 && r.Service == serviceUPnP && !r.Static && t.size > t.idleAbove && !now.Before(r.lastUsed.Add(t.idleAfter))
}

// rows yields all rows; those yielded may be dropped meanwhile.
func (t *table) rows(yield func(*row) bool) {
	for _, rows := range t.byExternal {
		for _, r := range rows {
			if !yield(r) {
				return
			}
		}
	}
}

// inOrder lists all rows, the oldest first.
func (t *table) rowsByAge() []*row {
	all := slices.Collect(t.rows)
	slices.SortFunc(all, func(a, b *row) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// entries is a snapshot, by protocol and external endpoint.
func (t *table) entries() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	all := make([]Entry, 0, t.size)
	for _, r := range t.rowsByAge() {
		all = append(all, t.snapshot(r, now))
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
func (t *table) deleteInternal(internal endpoint) (kept bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deleteExpired()
	for _, r := range t.rowsOf(internal) {
		switch {
		case r.Remote.IsValid(): // ends by itself
		case r.Static, r.host != nil:
			kept = true
		default:
			t.deleteRow(r)
		}
	}
	return kept
}

// of lists the rows of an internal endpoint, with port 0 those of the host.
func (t *table) rowsOf(internal endpoint) []*row {
	if internal.Port() != 0 {
		return withoutUPnP(t.byInternal[internal])
	}
	var rows []*row
	for in, list := range t.byInternal {
		if in.protocol == internal.protocol && in.Addr() == internal.Addr() {
			rows = append(rows, withoutUPnP(list)...)
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
func (t *table) deleteWithNonce(internal endpoint, nonce [12]byte) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	rows := withoutUPnP(t.byInternal[internal])
	if len(rows) == 0 {
		return Entry{}, errNoEntry
	}
	deletable := 0
	for _, r := range rows {
		switch {
		case r.Remote.IsValid():
			continue
		case r.Static:
			return t.snapshot(r, now), errNotDeletable
		case r.host != nil && r.host.nonce != nonce:
			return t.snapshot(r, now), errOtherOwner
		}
		deletable++
	}
	if deletable == 0 {
		return t.snapshot(rows[0], now), errNotDeletable
	}
	for _, r := range rows {
		if !r.Remote.IsValid() {
			t.deleteRow(r)
		}
	}
	return Entry{}, nil
}

// outbound finds the entry of an internal endpoint to a remote host.
func (t *table) peerEntry(internal endpoint, remote netip.AddrPort) (Entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	for _, r := range t.byInternal[internal] {
		if r.Remote == remote {
			return t.snapshot(r, now), true
		}
	}
	return Entry{}, false
}

// evict deletes the entries of an outside endpoint, also static ones, and
// reports whether there was one.
func (t *table) deleteExternal(at endpoint) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deleteExpired()
	rows := t.byExternal[at]
	for _, r := range rows {
		t.deleteRow(r)
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
			t.deleteRow(r)
		}
	}
}

// claimed is an entry with its owner.
type hostedEntry struct {
	Entry
	entryHost
}

// claims lists the entries whose owners are known. Those for which lost is
// true are deleted.
func (t *table) hostedEntries(lostAddress func(hostedEntry) bool) []hostedEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	var all []hostedEntry
	for r := range t.rows {
		if r.host == nil {
			continue
		}
		c := hostedEntry{t.snapshot(r, now), *r.host}
		all = append(all, c)
		if lostAddress(c) {
			t.deleteRow(r)
		}
	}
	slices.SortFunc(all, func(a, b hostedEntry) int { return a.External.Compare(b.External) })
	return all
}
