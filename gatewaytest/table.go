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

// Entry is an entry of the gateway's table.
type Entry struct {
	// Protocol is the transport protocol, such as TCP or UDP. 0 means all protocols.
	Protocol backends.Protocol
	// Internal is the endpoint to which inbound traffic is forwarded. Port 0 means all
	// ports. If Protocol is 0 too, it means all protocols. External then has port 0 as
	// well.
	Internal netip.AddrPort
	// External is the endpoint that outside hosts use. For a pinhole in the IPv6
	// firewall, it is the same as Internal.
	External netip.AddrPort
	// Remaining is the time until the entry expires on the gateway's clock, or
	// backends.Forever. In AddMapping, zero means Forever too.
	Remaining time.Duration
	// Service is the name of the protocol that created the entry ("natpmp", "pcp",
	// "upnp"), or of another source. In AddMapping, an empty string means "admin".
	Service string
	// Disabled entries are listed, but forward nothing.
	Disabled bool
	// Static entries cannot be deleted by a protocol, and survive Restart.
	Static bool
	// Description is the description in the request, if the protocol has one.
	Description string
	// Filters admit only the outside hosts that match at least one of them. Without
	// filters, all hosts are admitted.
	Filters []pcp.Filter
	// Remote is the only outside endpoint that an entry created by PCP's PEER admits; an
	// outgoing packet would create a similar entry. The zero value means that the entry
	// was not created by PEER.
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

// transportAddr is the internal or external address of a mapping, with its protocol. If an
// external address is zero or secondSession, it stands for the current external address
// of the gateway or of its second connection.
type transportAddr struct {
	protocol backends.Protocol
	netip.AddrPort
}

// secondSession is the external address in the table of the entries that the second
// connection of quirks.Description.TwoSessions has.
var secondSession = netip.IPv4Unspecified()

// row is an entry in the table, with its internal state.
type row struct {
	Entry               // Remaining is set only in snapshots
	host     *entryHost // nil: any program on the internal host may change the entry
	expires  time.Time  // zero: never
	seq      uint64     // number in order of creation
	lastUsed time.Time  // when it was last created, renewed, or used from outside
	packets  uint64     // number of connections and datagrams from outside
	id       uint16     // UniqueID of a UPnP pinhole
}

// entryHost identifies the client that owns an entry. It is replaced as a whole, never
// modified.
type entryHost struct {
	// nonce proves the identity of the owner.
	nonce [12]byte
	// source is the source address of the owner's last request.
	source netip.AddrPort
	// preferFailure is set if the owner accepts no external address other than
	// externalAddr.
	preferFailure bool
	externalAddr  netip.Addr
}

// mappingSpec describes the entry to create. Remaining is the lifetime; External.Port
// may be 0.
type mappingSpec struct {
	Entry
	// exactPort makes the request fail with errPortTaken if the requested port is not
	// available.
	exactPort bool
	// allowSecond creates a second entry for an internal endpoint if the requested port
	// differs from the port of the first entry.
	allowSecond bool
	// host is the client that sends the request. It must be the owner of an existing
	// entry, unless ignoreNonce is set.
	host        *entryHost
	ignoreNonce bool
	// edit, if not nil, changes the entry before it is granted, or returns an error.
	edit func(*Entry) error
}

// table holds the mappings of the router, with their lifetimes and ports. Several rows
// can have the same external endpoint only if they have the same internal endpoint and
// different remote hosts.
type table struct {
	clock *clock
	limit int
	// idleAfter, if not 0, is the time after which unused UPnP rows are deleted, as long
	// as the table has more than idleAbove rows.
	idleAfter time.Duration
	idleAbove int

	mu           sync.Mutex
	byExternal   map[transportAddr][]*row
	byInternal   map[transportAddr][]*row
	size         int
	nextExpiry   time.Time // no entry expires before this time
	nextSeq      uint64
	nextID       uint16 // UniqueID of the last pinhole
	nextHighPort int    // not reset by clear, so that a client notices that its entry was lost
}

// newTable returns an empty table. A limit of 0 means no limit.
func newTable(c *clock, limit int) *table {
	return &table{
		clock: c, limit: limit,
		byExternal: make(map[transportAddr][]*row),
		byInternal: make(map[transportAddr][]*row),
	}
}

// grant creates an entry, or renews the entry that the internal endpoint already has. It
// fails with errTableFull; with errPortTaken or errOtherOwner, and the conflicting entry
// if there is one; or with the error of spec.edit. If it fails, the table is unchanged.
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

// renew changes the lifetime of a row and the other properties in spec.
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
		// A request without a nonce can extend the lifetime of an owned entry, but
		// cannot change it otherwise.
		expires, forever = r.expires, r.expires.IsZero()
	}
	t.setExpiry(r, expires, forever)
	return t.snapshot(r, now), nil
}

// existing returns the row that the request renews, or nil.
func (t *table) existing(spec mappingSpec) *row {
	for _, r := range t.byInternal[transportAddr{spec.Protocol, spec.Internal}] {
		if r.Remote != spec.Remote || r.Service == serviceUPnP {
			continue
		}
		if !spec.allowSecond || spec.External.Port() == 0 || spec.External.Port() == r.External.Port() {
			return r
		}
	}
	return nil
}

// setExpiry sets the time at which the row expires.
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

// snapshot returns a copy of the row's entry, with Remaining set.
func (t *table) snapshot(r *row, now time.Time) Entry {
	e := r.Entry
	e.Filters = slices.Clone(e.Filters)
	e.Remaining = backends.Forever
	if !r.expires.IsZero() {
		e.Remaining = r.expires.Sub(now)
	}
	return e
}

// insert adds a new row to the table.
func (t *table) insert(r *row, now time.Time) {
	t.nextSeq++
	r.seq, r.lastUsed = t.nextSeq, now
	t.addToIndexes(r)
}

// addToIndexes adds a row to both indexes.
func (t *table) addToIndexes(r *row) {
	out, in := transportAddr{r.Protocol, r.External}, transportAddr{r.Protocol, r.Internal}
	t.byExternal[out] = append(t.byExternal[out], r)
	t.byInternal[in] = append(t.byInternal[in], r)
	t.size++
}

// deleteRow deletes a row from the table.
func (t *table) deleteRow(r *row) {
	removeFromIndex(t.byExternal, transportAddr{r.Protocol, r.External}, r)
	removeFromIndex(t.byInternal, transportAddr{r.Protocol, r.Internal}, r)
	t.size--
}

// removeFromIndex removes a row from an index, and deletes the list if it becomes empty.
// It does not modify the old list, because a caller may be iterating over it.
func removeFromIndex(index map[transportAddr][]*row, at transportAddr, r *row) {
	rest := slices.DeleteFunc(slices.Clone(index[at]), func(other *row) bool { return other == r })
	if len(rest) == 0 {
		delete(index, at)
		return
	}
	index[at] = rest
}

// deleteExpired deletes the rows that have expired or are idle, and returns the current
// time.
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

// isIdle reports whether the row is a UPnP row that has not been used for too long.
func (t *table) isIdle(r *row, now time.Time) bool {
	return t.idleAfter != 0 && r.Service == serviceUPnP && !r.Static && t.size > t.idleAbove && !now.Before(r.lastUsed.Add(t.idleAfter))
}

// rows iterates over all rows. The caller may delete rows during the iteration.
func (t *table) rows(yield func(*row) bool) {
	for _, rows := range t.byExternal {
		for _, r := range rows {
			if !yield(r) {
				return
			}
		}
	}
}

// rowsByAge returns all rows, oldest first.
func (t *table) rowsByAge() []*row {
	all := slices.Collect(t.rows)
	slices.SortFunc(all, func(a, b *row) int { return cmp.Compare(a.seq, b.seq) })
	return all
}

// entries returns a snapshot of all entries, sorted by protocol and external endpoint.
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

// deleteInternal deletes the entries of an internal endpoint, or those of the whole host
// if the port is 0. It keeps static entries and entries that have an owner with a nonce,
// and reports whether there were any.
func (t *table) deleteInternal(internal transportAddr) (kept bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deleteExpired()
	for _, r := range t.rowsOf(internal) {
		switch {
		case r.Remote.IsValid(): // it cannot be deleted and expires by itself
		case r.Static, r.host != nil:
			kept = true
		default:
			t.deleteRow(r)
		}
	}
	return kept
}

// rowsOf returns the rows of an internal endpoint, or those of the host if the port is
// 0, without UPnP rows.
func (t *table) rowsOf(internal transportAddr) []*row {
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

// withoutUPnP returns the rows that NAT-PMP and PCP can see.
func withoutUPnP(rows []*row) []*row {
	return slices.DeleteFunc(slices.Clone(rows), func(r *row) bool { return r.Service == serviceUPnP })
}

// deleteWithNonce deletes the entries of exactly this internal endpoint if the nonce is
// right. It fails with errNoEntry, or with errNotDeletable or errOtherOwner and the
// entry.
func (t *table) deleteWithNonce(internal transportAddr, nonce [12]byte) (Entry, error) {
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

// peerEntry returns the entry of an internal endpoint for a remote host.
func (t *table) peerEntry(internal transportAddr, remote netip.AddrPort) (Entry, bool) {
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

// deleteExternal deletes the entries of an external endpoint, even static ones, and
// reports whether there were any.
func (t *table) deleteExternal(at transportAddr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deleteExpired()
	rows := t.byExternal[at]
	for _, r := range rows {
		t.deleteRow(r)
	}
	return len(rows) != 0
}

// clear deletes all entries except static ones.
func (t *table) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nextID = 0 // as in a daemon that has been restarted
	for r := range t.rows {
		if !r.Static {
			t.deleteRow(r)
		}
	}
}

// hostedEntry is an entry with its owner.
type hostedEntry struct {
	Entry
	entryHost
}

// hostedEntries returns the entries that have an owner. It deletes those for which
// lostAddress returns true.
func (t *table) hostedEntries(lostAddress func(hostedEntry) bool) []hostedEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	var entries []hostedEntry
	for r := range t.rows {
		if r.host == nil {
			continue
		}
		entry := hostedEntry{t.snapshot(r, now), *r.host}
		entries = append(entries, entry)
		if lostAddress(entry) {
			t.deleteRow(r)
		}
	}
	slices.SortFunc(entries, func(a, b hostedEntry) int { return a.External.Compare(b.External) })
	return entries
}
