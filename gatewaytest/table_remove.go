package gatewaytest

import (
	"net/netip"
	"slices"
)

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
