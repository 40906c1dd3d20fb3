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
// granted last breaks nothing; a deletion breaks any. After a restart that nothing
// shows, their order is unknown; they get it right when one is granted anew.

// touched is why a sibling is renewed.
const touched = "another protocol of its port was renewed or taken away"

// touch renews the siblings that a renewal of legs, or their deletion, may have
// broken.
func (f *Forwarder) touch(m *Mapping, legs []leg, deleted bool) {
	m.mu.Lock()
	born := m.born
	m.mu.Unlock()
	for _, s := range f.samePort(m) {
		if s.isSibling(legs, func(theirs time.Time) bool { return deleted || !theirs.Before(born) }) {
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
// the legs and was granted when it matters, and remembers why it is due.
func (m *Mapping) isSibling(legs []leg, matters func(born time.Time) bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wish.once || !m.shares(legs) || !matters(m.born) {
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

// precedence is how much later than its siblings a mapping is to be asked for,
// where it is not sure that the gateway has lost them: if it has, then who is
// granted first again is first on its list, and that has to be who it was. Of a
// gateway that has surely lost them, whoever comes first is first.
func (m *Mapping) precedence(change backends.Change) time.Duration {
	if change.Kind == backends.Restarted {
		return 0
	}
	m.mu.Lock()
	legs, born := m.legs, m.born
	m.mu.Unlock()
	for _, s := range m.forwarder.samePort(m) {
		s.mu.Lock()
		elder := s.shares(legs) && s.born.Before(born) && !s.wish.once
		s.mu.Unlock()
		if elder {
			return siblingPause
		}
	}
	return 0
}
