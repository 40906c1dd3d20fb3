package gatewaytest

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// errReAdd and errSecondPort are errPortTaken for requests that only a quirk refuses.
var (
	errReAdd      = fmt.Errorf("%w: the client already has the mapping", errPortTaken)
	errSecondPort = fmt.Errorf("%w: the client already has another port", errPortTaken)
)

// upnpGrantRules are the quirks that grantUPnP applies.
type upnpGrantRules struct {
	refuseReAdd     bool // return errReAdd instead of overwriting
	keepLifetime    bool // overwriting does not change the lifetime
	oneExternalPort bool // return errSecondPort for a second port of an internal endpoint
}

// grantUPnP creates or overwrites an entry by the rules of UPnP. The external endpoint
// and the admitted remote hosts identify an entry. The same client can overwrite it,
// even with another internal port (WANIPConnection:2, section 2.5.16). Entries of other
// protocols conflict with UPnP entries, and vice versa.
//
// It fails with errTableFull, errReAdd, errSecondPort, or errPortTaken and the
// conflicting entry if there is one.
func (t *table) grantUPnP(spec mappingSpec, rules upnpGrantRules) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	rows := t.byExternal[transportAddr{spec.Protocol, spec.External}]
	for _, r := range rows {
		if !r.matchesUPnP(spec.Internal.Addr(), spec.Filters) || !spec.exactPort && r.Internal != spec.Internal {
			continue
		}
		switch {
		case rules.refuseReAdd:
			return t.snapshot(r, now), errReAdd
		case r.Internal != spec.Internal && len(rows) > 1:
			return t.snapshot(r, now), errPortTaken // an entry of PCP's PEER has the port too
		}
		t.overwrite(r, spec, rules, now)
		return t.snapshot(r, now), nil
	}
	if rules.oneExternalPort && slices.ContainsFunc(t.byInternal[transportAddr{spec.Protocol, spec.Internal}], func(r *row) bool {
		return isUPnP(r) && r.External.Addr() == spec.External.Addr()
	}) {
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

// overwrite changes a row as the request specifies.
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

// matchesUPnP reports whether this client created the row by UPnP for these remote
// hosts.
func (r *row) matchesUPnP(client netip.Addr, remote []pcp.Filter) bool {
	return isUPnP(r) && !r.Static && r.Internal.Addr() == client && slices.Equal(r.Filters, remote)
}

// isUPnP reports whether UPnP created the row.
func isUPnP(r *row) bool { return r.Service == serviceUPnP }

// listed returns the entries of a session that an IGD lists, oldest first: all IPv4
// entries except those of PCP's PEER and those for all ports.
func (t *table) listed(session netip.Addr) []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	var all []Entry
	for _, r := range t.rowsByAge() {
		if r.isListed() && r.External.Addr() == session {
			all = append(all, t.snapshot(r, now))
		}
	}
	return all
}

// isListed reports whether an IGD lists the row.
func (r *row) isListed() bool {
	return !r.External.Addr().Is6() && r.External.Port() != 0 && !r.Remote.IsValid() &&
		(r.Protocol == backends.TCP || r.Protocol == backends.UDP)
}

// deleteListed deletes the listed entries for which match returns true, and returns
// their number. Entries that are static or have a nonce are kept, and counted in kept.
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

// pinhole is an IPv6 firewall entry as UPnP reports it.
type pinhole struct {
	Entry
	id      uint16
	packets uint64
}

// openPinhole opens a pinhole, or renews the pinhole that has the same internal endpoint
// and filters. It fails with errTableFull.
func (t *table) openPinhole(spec mappingSpec) (pinhole, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.deleteExpired()
	for _, r := range t.byExternal[transportAddr{spec.Protocol, spec.External}] {
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

// nextPinholeID returns the UniqueID for a new pinhole, or 0 if none is free.
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

// pinholeSnapshot returns a copy of the row as a pinhole.
func (t *table) pinholeSnapshot(r *row, now time.Time) pinhole {
	return pinhole{Entry: t.snapshot(r, now), id: r.id, packets: r.packets}
}

// findPinhole returns the pinhole with a UniqueID. It fails with errNoEntry, or with
// errOtherOwner if the pinhole is for a host other than client. The zero Addr stands for
// any host.
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

// setPinholeLifetime changes the lifetime of a pinhole, and deletes the pinhole if the
// lifetime is 0. It fails as findPinhole does.
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

// pinholeRow returns the row of a pinhole. It fails as findPinhole does.
func (t *table) pinholeRow(id uint16, client netip.Addr) (*row, error) {
	for r := range t.rows {
		switch {
		case id == 0 || r.id != id:
			continue
		case client.IsValid() && r.Internal.Addr() != client:
			return nil, errOtherOwner
		}
		return r, nil
	}
	return nil, errNoEntry
}
