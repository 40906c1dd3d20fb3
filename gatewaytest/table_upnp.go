package gatewaytest

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// errHeld and errSecond are errTaken by rules against what would be possible.
var (
	errReAdd      = fmt.Errorf("%w: the client has it already", errPortTaken)
	errSecondPort = fmt.Errorf("%w: the client has another port", errPortTaken)
)

// assignRules are the quirks of assign.
type upnpGrantRules struct {
	refuseReAdd     bool // errHeld rather than overwrite
	keepLifetime    bool // overwriting leaves the lifetime alone
	oneExternalPort bool // errSecond for a second port of an internal endpoint
}

// assign is grant as UPnP has it: an entry is known by its outside endpoint and
// the remote hosts it admits, and the same client overwrites it, also with
// another internal port (WANIPConnection:2, section 2.5.16). Entries of other
// protocols are in its way, and it is in theirs. It fails with errFull, errHeld,
// errSecond, or errTaken beside the entry in the way, if there is one.
func (t *table) grantUPnP(spec mappingSpec, rules upnpGrantRules) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	rows := t.byExternal[endpoint{spec.Protocol, spec.External}]
	for _, r := range rows {
		if !r.matchesUPnP(spec.Internal.Addr(), spec.Filters) || !spec.exactPort && r.Internal != spec.Internal {
			continue
		}
		switch {
		case rules.refuseReAdd:
			return t.snapshot(r, now), errReAdd
		case r.Internal != spec.Internal && len(rows) > 1:
			return t.snapshot(r, now), errPortTaken // an outgoing connection has the port too
		}
		t.overwrite(r, spec, rules, now)
		return t.snapshot(r, now), nil
	}
	if rules.oneExternalPort && slices.ContainsFunc(t.byInternal[endpoint{spec.Protocol, spec.Internal}], isUPnP) {
		return Entry{}, errSecondPort
	}
	if t.limit != 0 && t.size >= t.limit {
		return Entry{}, errTableFull
	}
	spec.allowSecond = true
	port, err := t.choosePort(spec)
	if err != nil {
		if len(rows) != 0 {
			return t.snapshot(rows[0], now), err
		}
		return Entry{}, err
	}
	r := &row{Entry: spec.Entry}
	r.External = netip.AddrPortFrom(spec.External.Addr(), port)
	t.setExpiry(r, now.Add(spec.Remaining), spec.Remaining == backends.Forever)
	t.insert(r, now)
	return t.snapshot(r, now), nil
}

// overwrite gives a row what the wish says.
func (t *table) overwrite(r *row, spec mappingSpec, rules upnpGrantRules, now time.Time) {
	if r.Internal != spec.Internal {
		t.deleteRow(r)
		r.Internal = spec.Internal
		t.addToIndexes(r)
	}
	r.Description, r.Disabled, r.lastUsed = spec.Description, spec.Disabled, now
	if !rules.keepLifetime {
		t.setExpiry(r, now.Add(spec.Remaining), spec.Remaining == backends.Forever)
	}
}

// isUPnP reports whether the row is one that this client made by UPnP for these
// remote hosts.
func (r *row) matchesUPnP(client netip.Addr, remote []pcp.Filter) bool {
	return isUPnP(r) && !r.Static && r.Internal.Addr() == client && slices.Equal(r.Filters, remote)
}

func isUPnP(r *row) bool { return r.Service == serviceUPnP }

// listed is what an IGD lists, the oldest first: the IPv4 rows but for
// outgoing connections and those of all ports.
func (t *table) listed() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	var all []Entry
	for _, r := range t.rowsByAge() {
		if r.isListed() {
			all = append(all, t.snapshot(r, now))
		}
	}
	return all
}

func (r *row) isListed() bool {
	return !r.External.Addr().IsValid() && r.External.Port() != 0 && !r.Remote.IsValid() &&
		(r.Protocol == backends.TCP || r.Protocol == backends.UDP)
}

// release deletes the listed entries for which match is true, and reports how
// many; those that are static or have an owner by nonce stay, and are counted in stay.
func (t *table) deleteListed(match func(Entry) bool) (deleted, kept int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	for r := range t.rows {
		switch {
		case !r.isListed() || !match(t.snapshot(r, now)):
		case r.Static || r.host != nil:
			kept++
		default:
			deleted++
			t.deleteRow(r)
		}
	}
	return deleted, kept
}

// pinhole is a row of the firewall as UPnP sees it.
type pinhole struct {
	Entry
	id      uint16
	packets uint64
}

// pierce opens a pinhole, or renews the one with the same internal endpoint and
// filters. It fails with errFull.
func (t *table) openPinhole(spec mappingSpec) (pinhole, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	for _, r := range t.byExternal[endpoint{spec.Protocol, spec.External}] {
		if r.matchesUPnP(spec.Internal.Addr(), spec.Filters) {
			t.overwrite(r, spec, upnpGrantRules{}, now)
			return t.pinholeSnapshot(r, now), nil
		}
	}
	id := t.nextPinholeID()
	if id == 0 || t.limit != 0 && t.size >= t.limit {
		return pinhole{}, errTableFull
	}
	r := &row{Entry: spec.Entry, id: id}
	t.setExpiry(r, now.Add(spec.Remaining), spec.Remaining == backends.Forever)
	t.insert(r, now)
	return t.pinholeSnapshot(r, now), nil
}

// freeID is the number of a new pinhole, or 0.
func (t *table) nextPinholeID() uint16 {
	taken := make(map[uint16]bool)
	for r := range t.rows {
		taken[r.id] = true
	}
	for range 1<<16 - 1 {
		t.nextID++
		if t.nextID != 0 && !taken[t.nextID] {
			return t.nextID
		}
	}
	return 0
}

func (t *table) pinholeSnapshot(r *row, now time.Time) pinhole {
	return pinhole{Entry: t.snapshot(r, now), id: r.id, packets: r.packets}
}

// pinhole finds one by its number. It fails with errNone, or with errOwner where
// it is not for this client.
func (t *table) findPinhole(id uint16, client netip.Addr) (pinhole, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	r, err := t.pinholeRow(id, client)
	if err != nil {
		return pinhole{}, err
	}
	return t.pinholeSnapshot(r, now), nil
}

// prolong gives a pinhole another lifetime, with 0 the end. It fails as pinhole does.
func (t *table) setPinholeLifetime(id uint16, client netip.Addr, lifetime time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	r, err := t.pinholeRow(id, client)
	switch {
	case err != nil:
		return err
	case lifetime == 0:
		t.deleteRow(r)
	default:
		t.setExpiry(r, now.Add(lifetime), false)
	}
	return nil
}

func (t *table) pinholeRow(id uint16, client netip.Addr) (*row, error) {
	for r := range t.rows {
		switch {
		case id == 0 || r.id != id:
			continue
		case r.Internal.Addr() != client:
			return nil, errOtherOwner
		}
		return r, nil
	}
	return nil, errNoEntry
}
