package forward

import (
	"slices"
	"time"
)

// touched is why a sibling is renewed.
const touched = "another protocol of its port was renewed or taken away"

// touch renews what else leads to the internal endpoints of legs that were
// renewed in place or taken away: miniupnpd 2.3.1 on nftables then removes the
// firewall rule of the other protocol, so that its mapping stands and passes
// nothing until it is renewed.
func (f *Forwarder) touch(m *Mapping, legs []leg) {
	f.mu.Lock()
	siblings := slices.Clone(f.byPort[m.port])
	f.mu.Unlock()
	for _, s := range siblings {
		if s != m && s.isSibling(legs) {
			f.scheduler.hasten(s, time.Now())
		}
	}
}

// isSibling reports whether the mapping shares an internal endpoint with one of
// the legs, and remembers why it is due.
func (m *Mapping) isSibling(legs []leg) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	shares := slices.ContainsFunc(m.legs, func(mine leg) bool {
		return slices.ContainsFunc(legs, func(l leg) bool {
			return mine.candidate == l.candidate && mine.granted.Internal == l.granted.Internal &&
				mine.granted.Protocol != l.granted.Protocol
		})
	})
	if shares && !m.wish.once && m.reason == "" {
		m.reason = touched
	}
	return shares && !m.wish.once
}
