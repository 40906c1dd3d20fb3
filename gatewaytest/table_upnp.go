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
	errHeld   = fmt.Errorf("%w: the client has it already", errTaken)
	errSecond = fmt.Errorf("%w: the client has another port", errTaken)
)

// assignRules are the quirks of assign.
type assignRules struct {
	noReAdd   bool // errHeld rather than overwrite
	noRefresh bool // overwriting leaves the lifetime alone
	onePort   bool // errSecond for a second port of an internal endpoint
}

// assign is grant as UPnP has it: an entry is known by its outside endpoint and
// the remote hosts it admits, and the same client overwrites it, also with
// another internal port (WANIPConnection:2, section 2.5.16). Entries of other
// protocols are in its way, and it is in theirs. It fails with errFull, errHeld,
// errSecond, or errTaken beside the entry in the way, if there is one.
func (t *table) assign(w wish, rules assignRules) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	rows := t.outside[endpoint{w.Protocol, w.External}]
	for _, r := range rows {
		if !r.isUPnP(w.Internal.Addr(), w.Filters) || !w.exact && r.Internal != w.Internal {
			continue
		}
		switch {
		case rules.noReAdd:
			return t.leave(r, now), errHeld
		case r.Internal != w.Internal && len(rows) > 1:
			return t.leave(r, now), errTaken // an outgoing connection has the port too
		}
		t.overwrite(r, w, rules, now)
		return t.leave(r, now), nil
	}
	if rules.onePort && slices.ContainsFunc(t.inside[endpoint{w.Protocol, w.Internal}], isUPnP) {
		return Entry{}, errSecond
	}
	if t.limit != 0 && t.size >= t.limit {
		return Entry{}, errFull
	}
	w.another = true
	port, err := t.choose(w)
	if err != nil {
		if len(rows) != 0 {
			return t.leave(rows[0], now), err
		}
		return Entry{}, err
	}
	r := &row{Entry: w.Entry}
	r.External = netip.AddrPortFrom(w.External.Addr(), port)
	t.live(r, now.Add(w.Remaining), w.Remaining == backends.Forever)
	t.create(r, now)
	return t.leave(r, now), nil
}

// overwrite gives a row what the wish says.
func (t *table) overwrite(r *row, w wish, rules assignRules, now time.Time) {
	if r.Internal != w.Internal {
		t.drop(r)
		r.Internal = w.Internal
		t.add(r)
	}
	r.Description, r.Disabled, r.used = w.Description, w.Disabled, now
	if !rules.noRefresh {
		t.live(r, now.Add(w.Remaining), w.Remaining == backends.Forever)
	}
}

// isUPnP reports whether the row is one that this client made by UPnP for these
// remote hosts.
func (r *row) isUPnP(client netip.Addr, remote []pcp.Filter) bool {
	return isUPnP(r) && !r.Static && r.Internal.Addr() == client && slices.Equal(r.Filters, remote)
}

func isUPnP(r *row) bool { return r.Service == serviceUPnP }

// listed is what an IGD lists, the oldest first: the IPv4 rows but for
// outgoing connections and those of all ports.
func (t *table) listed() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	var all []Entry
	for _, r := range t.inOrder() {
		if r.isListed() {
			all = append(all, t.leave(r, now))
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
func (t *table) release(match func(Entry) bool) (gone, stay int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	for r := range t.rows {
		switch {
		case !r.isListed() || !match(t.leave(r, now)):
		case r.Static || r.claim != nil:
			stay++
		default:
			gone++
			t.drop(r)
		}
	}
	return gone, stay
}

// pinhole is a row of the firewall as UPnP sees it.
type pinhole struct {
	Entry
	id      uint16
	packets uint64
}

// pierce opens a pinhole, or renews the one with the same internal endpoint and
// filters. It fails with errFull.
func (t *table) pierce(w wish) (pinhole, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	for _, r := range t.outside[endpoint{w.Protocol, w.External}] {
		if r.isUPnP(w.Internal.Addr(), w.Filters) {
			t.overwrite(r, w, assignRules{}, now)
			return t.hole(r, now), nil
		}
	}
	id := t.freeID()
	if id == 0 || t.limit != 0 && t.size >= t.limit {
		return pinhole{}, errFull
	}
	r := &row{Entry: w.Entry, id: id}
	t.live(r, now.Add(w.Remaining), w.Remaining == backends.Forever)
	t.create(r, now)
	return t.hole(r, now), nil
}

// freeID is the number of a new pinhole, or 0.
func (t *table) freeID() uint16 {
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

func (t *table) hole(r *row, now time.Time) pinhole {
	return pinhole{Entry: t.leave(r, now), id: r.id, packets: r.packets}
}

// pinhole finds one by its number. It fails with errNone, or with errOwner where
// it is not for this client.
func (t *table) pinhole(id uint16, client netip.Addr) (pinhole, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	r, err := t.holeRow(id, client)
	if err != nil {
		return pinhole{}, err
	}
	return t.hole(r, now), nil
}

// prolong gives a pinhole another lifetime, with 0 the end. It fails as pinhole does.
func (t *table) prolong(id uint16, client netip.Addr, lifetime time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.sweep()
	r, err := t.holeRow(id, client)
	switch {
	case err != nil:
		return err
	case lifetime == 0:
		t.drop(r)
	default:
		t.live(r, now.Add(lifetime), false)
	}
	return nil
}

func (t *table) holeRow(id uint16, client netip.Addr) (*row, error) {
	for r := range t.rows {
		switch {
		case id == 0 || r.id != id:
			continue
		case r.Internal.Addr() != client:
			return nil, errOwner
		}
		return r, nil
	}
	return nil, errNone
}
