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
	born time.Time // when the gateway granted it anew, and not only renewed
	lost time.Time // when the gateway lost it, and it was not granted since; or the zero Time
	// earlier are when it was granted before the last time, for a restart that is
	// noticed only then: the zero Time where it was not.
	earlier [2]time.Time
}

func bySeniority(a, b *Mapping) int {
	a.mu.Lock()
	born := a.seniority.born
	a.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	return born.Compare(b.seniority.born)
}

// bereave notes that the gateway lost its state, at a time that it may not have
// told, and reports whether the mapping was part of it.
func (m *Mapping) bereave(lost time.Time) bool {
	if lost.IsZero() {
		return true // perhaps, and then asked for again in the old order
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	before := func(l leg) bool { return l.granted.Granted.Before(lost) }
	s := &m.seniority
	if len(m.legs) == 0 || slices.ContainsFunc(m.legs, before) {
		s.lost = lost
		return true
	}
	s.born = m.legs[0].granted.Granted
	for _, at := range s.earlier {
		if !at.Before(lost) && at.Before(s.born) {
			s.born = at
		}
	}
	return false
}

// rank gives a mapping its seniority after a grant. What was under way when a
// restart was noticed may come before what is asked for on account of that, so
// it is the grant that counts. m.mu is held.
func (m *Mapping) rank(legs []leg) {
	granted, s := legs[0].granted.Granted, &m.seniority
	if len(m.legs) == 0 || legs[0].lease != m.legs[0].lease {
		*s = seniority{born: granted, lost: s.lost}
	} else {
		s.earlier = [...]time.Time{s.earlier[1], m.legs[0].granted.Granted}
	}
	if !s.lost.IsZero() && !granted.Before(s.lost) {
		s.born, s.lost = granted, time.Time{}
	}
}

// eldestFirst orders the legs of one mapping, which are siblings too, as the
// gateway's list will: where a restart came between their grants, what it has
// lost is granted anew, and so comes after what it granted since.
func (f *Forwarder) eldestFirst(legs []leg) {
	f.mu.Lock()
	defer f.mu.Unlock()
	age := func(l leg) int {
		if l.granted.Granted.Before(l.candidate.lost) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(legs, func(a, b leg) int { return age(a) - age(b) })
}

// renewed renews the siblings that a renewal of a mapping's legs may have broken,
// and those that have waited for it.
func (f *Forwarder) renewed(m *Mapping, legs []leg) {
	m.mu.Lock()
	born := m.seniority.born
	m.mu.Unlock()
	f.touch(f.samePort(m.port, m), legs, func(s *seniority) bool { return !s.lost.IsZero() || !s.born.Before(born) })
}

// disturbed renews the siblings that the deletion of legs for an internal port
// may have broken.
func (f *Forwarder) disturbed(port uint16, legs []leg) {
	f.touch(f.samePort(port, nil), legs, func(*seniority) bool { return true })
}

func (f *Forwarder) touch(ms []*Mapping, legs []leg, matters func(*seniority) bool) {
	for _, s := range ms {
		if s.isSibling(legs, matters) {
			f.scheduler.hasten(s, time.Now())
		}
	}
}

// samePort are the held mappings of an internal port, but for one.
func (f *Forwarder) samePort(port uint16, but *Mapping) []*Mapping {
	f.mu.Lock()
	defer f.mu.Unlock()
	return without(slices.Clone(f.byPort[port]), but)
}

// isSibling reports whether the mapping shares an internal endpoint with one of
// the legs and has a seniority that matters, and remembers why it is due.
func (m *Mapping) isSibling(legs []leg, matters func(*seniority) bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wish.once || !m.shares(legs) || !matters(&m.seniority) {
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
	return slices.ContainsFunc(m.forwarder.samePort(m.port, m), func(s *Mapping) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return !s.wish.once && s.shares(legs) && slices.Contains(others, s)
	})
}
