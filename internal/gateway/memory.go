package gateway

import "time"

// answer is what is known about one protocol of a gateway.
type answer struct {
	replied bool   // to its last probe
	url     string // of the UPnP root description, if the device belongs to the gateway
}

// memory is what a registry remembers of a gateway. It is a hint: the gateway behind the key
// can be another one now.
type memory struct {
	answers   map[string]answer // by protocol
	roundTrip time.Duration     // or 0 if it is unknown
	changed   uint64            // the sequence number of the last change
}

// maxMemories is the number of gateways that a registry remembers. The one that was not probed
// for the longest time is forgotten first.
const maxMemories = 64

// learn records what a probe has shown. Ready-made backends have no key and are not
// remembered. A round-trip time of 0 is unknown.
func (r *Registry) learn(key Key, answers map[string]answer, roundTrip time.Duration) {
	if key == (Key{}) || len(answers) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.memories[key]
	if m == nil {
		m = &memory{answers: map[string]answer{}}
		r.memories[key] = m
	}
	for name, a := range answers {
		m.answers[name] = a
	}
	if roundTrip > 0 {
		m.roundTrip = roundTrip
	}
	r.changes++
	m.changed = r.changes
	if len(r.memories) <= maxMemories {
		return
	}
	oldest := key
	for k, m := range r.memories {
		if m.changed < r.memories[oldest].changed {
			oldest = k
		}
	}
	delete(r.memories, oldest)
}

// Hint is a protocol that a gateway supported when it was probed last.
type Hint struct {
	Protocol string
	URL      string // of the UPnP root description, or empty
}

// Suggest records hints about a gateway, as if it had replied to these protocols and to no
// other. It has no effect if something is known about the gateway already, or if there are no
// hints.
func (r *Registry) Suggest(key Key, hints []Hint) {
	r.mu.Lock()
	known := r.memories[key] != nil
	r.mu.Unlock()
	if known || len(hints) == 0 {
		return
	}
	answers := map[string]answer{}
	for _, name := range Names() {
		answers[name] = answer{}
	}
	for _, h := range hints {
		answers[h.Protocol] = answer{true, h.URL}
	}
	r.learn(key, answers, 0)
}

// recall returns the index of the backend that is asked first because the gateway supported
// it before, and the round-trip time of the gateway, or 0. If a more preferred backend was
// never asked, or if no backend is known to be supported, the index is -1.
func (c *Client) recall() (first int, roundTrip time.Duration) {
	first, url, roundTrip := c.owner.registry.firstOf(c.owner.key, c.backends)
	if first >= 0 && url != "" {
		if s, is := c.backends[first].Backend.(interface{ TryFirst(url string) }); is {
			s.TryFirst(url)
		}
	}
	return first, roundTrip
}

// firstOf returns the results of recall, and the URL that is known of the backend.
func (r *Registry) firstOf(key Key, bs []*Backend) (first int, url string, roundTrip time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.memories[key]
	if m == nil {
		return -1, "", 0
	}
	for i, b := range bs {
		if a, asked := m.answers[b.name]; !asked {
			break
		} else if a.replied {
			return i, a.url, m.roundTrip
		}
	}
	return -1, "", 0
}

// Known returns the protocols that the gateway is known to support, the preferred one first.
// Ready-made backends and Direct are not included.
func (c *Client) Known() (hints []Hint) {
	c.owner.loop.Do(func() {
		for _, b := range c.backends {
			if b.config.Ready == nil && b.probe != nil && (b.probeErr == nil || b.repliedLate) {
				hints = append(hints, Hint{b.name, b.URL()})
			}
		}
	})
	return hints
}

// answer returns what is known about a backend that is available.
func (b *Backend) answer() answer { return answer{true, b.URL()} }

// URL returns the URL of the root description of the UPnP device in use, if it belongs to the
// gateway. It is empty for other protocols.
func (b *Backend) URL() string {
	if d, is := b.Backend.(interface{ DeviceURL() string }); is {
		return d.DeviceURL()
	}
	return ""
}
