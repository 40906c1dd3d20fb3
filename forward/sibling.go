package forward

import (
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
)

// Mappings of one internal port, by different protocols, are siblings: each
// request about one can break another. miniupnpd 2.3.1 on nftables keeps a list
// of firewall rules for each internal port and, whichever protocol a request is
// about, takes the last rule away, and appends that of the request where it
// renews. So whoever is first on the list stays, whoever was renewed last comes
// last, and the others' mappings stand and pass nothing. Renewing what was granted
// first breaks those granted later, until they are renewed; renewing what was
// granted last breaks nothing; a deletion breaks any. So siblings keep an order,
// and are renewed in it. After a restart that nothing shows, the order is unknown;
// they get it right when one is granted anew.

// touched is why a sibling is renewed.
const touched = "another protocol of its port was renewed or taken away"

// seniority orders siblings as the gateway's list does, as far as we know.
type seniority struct {
	era  uint64    // how many restarts of gateways there were before
	born time.Time // when the gateway granted it anew, and not only renewed
}

func (s seniority) before(other seniority) bool {
	return s.era < other.era || s.era == other.era && s.born.Before(other.born)
}

func bySeniority(a, b *Mapping) int {
	a.mu.Lock()
	one := a.seniority
	a.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case one.before(b.seniority):
		return -1
	case b.seniority.before(one):
		return +1
	}
	return 0
}

// demote makes what the gateway may have lost junior to what it has granted since
// then, and reports whether the mapping is of the former.
func (m *Mapping) demote(lost time.Time, era uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	since := !lost.IsZero() && len(m.legs) > 0 &&
		!slices.ContainsFunc(m.legs, func(l leg) bool { return !l.granted.Granted.After(lost) })
	if !since {
		m.seniority.era = era
	}
	return !since
}

// touch renews the siblings that a renewal of legs, or their deletion, may have
// broken.
func (f *Forwarder) touch(m *Mapping, legs []leg, deleted bool) {
	m.mu.Lock()
	senior := m.seniority
	m.mu.Unlock()
	for _, s := range f.samePort(m) {
		if s.isSibling(legs, func(theirs seniority) bool { return deleted || !theirs.before(senior) }) {
			f.scheduler.hasten(s, time.Now())
		}
	}
}

// samePort are the other held mappings of an internal port.
func (f *Forwarder) samePort(m *Mapping) []*Mapping {
	f.mu.Lock()
	defer f.mu.Unlock()
	return without(slices.Clone(f.byPort[m.port]), m)
}

// isSibling reports whether the mapping shares an internal endpoint with one of
// the legs and has the seniority that matters, and remembers why it is due.
func (m *Mapping) isSibling(legs []leg, matters func(seniority) bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wish.once || !m.shares(legs) || !matters(m.seniority) {
		return false
	}
	if m.reason == "" {
		m.reason = touched
	}
	return true
}

// shares reports whether a leg leads to the internal endpoint of one of legs, by
// another protocol. m.mu is held.
func (m *Mapping) shares(legs []leg) bool {
	return slices.ContainsFunc(m.legs, func(mine leg) bool {
		return slices.ContainsFunc(legs, func(l leg) bool {
			return mine.candidate == l.candidate && mine.granted.Internal == l.granted.Internal &&
				mine.granted.Protocol != l.granted.Protocol
		})
	})
}

// siblingPause is how long a mapping waits for an elder sibling, whose renewal
// hastens it, where both are suspected to be lost.
const siblingPause = 5 * time.Second

// suspect asks for mappings again that a change is about, siblings in their order.
// Whether the gateway has lost them is never sure: some start their clock anew
// with every external address. Asked for in order, they come to be in it on the
// gateway's list, lost or not.
func (f *Forwarder) suspect(ms []*Mapping, about func(*Mapping) backends.Change, at time.Time) {
	slices.SortStableFunc(ms, bySeniority)
	due := make([]time.Time, len(ms))
	for i, m := range ms {
		due[i] = at
		if m.hasSibling(ms[:i]) {
			due[i] = at.Add(siblingPause)
		}
	}
	for i, m := range ms {
		m.suspect(about(m), due[i])
	}
}

// hasSibling reports whether a sibling is among others, that is renewed itself.
func (m *Mapping) hasSibling(others []*Mapping) bool {
	m.mu.Lock()
	legs := m.legs
	m.mu.Unlock()
	return slices.ContainsFunc(m.forwarder.samePort(m), func(s *Mapping) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return !s.wish.once && s.shares(legs) && slices.Contains(others, s)
	})
}
