package upnp

import (
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// quirks contains what was observed on a service of a device. The backend keeps it
// as long as it exists, unless it has used many services.
type quirks struct {
	mu       sync.Mutex
	state    quirkState
	failures map[string]time.Time // what failed, and when that is forgotten: see remember
	silences map[string]time.Time // the actions whose last requests got no reply, and since when
}

type quirkState struct {
	variant    variant
	noAddAny   bool // AddAnyPortMapping does not work
	findsByKey bool // GetSpecificPortMappingEntry has found an entry
	deletes    bool // a deletion has deleted an entry
}

// quirksOf returns the quirks of a service. If the number of services reaches a
// limit, the quirks of all other services are dropped.
func (b *Backend) quirksOf(c *Client) *quirks {
	key := c.service.Type + " " + c.urls[0].addr.Addr().String() + c.urls[0].url.RequestURI() // the port may change
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.quirks[key]
	if q == nil {
		if len(b.quirks) >= maxNonGateways {
			clear(b.quirks)
		}
		q = &quirks{failures: map[string]time.Time{}, silences: map[string]time.Time{}}
		b.quirks[key] = q
	}
	return q
}

// update calls f with the lock held.
func (q *quirks) update(f func(q *quirkState)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f(&q.state)
}

func (q *quirks) get() quirkState {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state
}

// maxFailures is the maximum number of failures that are remembered.
const maxFailures = 64

// remember records for some time that something failed: an action got no reply, or a
// port was refused.
func (q *quirks) remember(what string, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.failures) >= maxFailures {
		clear(q.failures)
	}
	q.failures[what] = time.Now().Add(d)
}

// remembers reports whether a failure was recorded and is not forgotten.
func (q *quirks) remembers(what string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return time.Now().Before(q.failures[what])
}

// recordSilence records whether the service replied to an action, and when it last replied
// to any action. A missing reply may be a fault of the network. Two of them are remembered
// if the service has replied to another action in between.
func (q *quirks) recordSilence(action string, silent bool, lastReply *time.Time) {
	q.mu.Lock()
	first, again := q.silences[action]
	switch {
	case !silent:
		delete(q.silences, action)
	case !again:
		q.silences[action] = time.Now()
	}
	q.mu.Unlock()
	if silent && again && lastReply != nil && lastReply.After(first) {
		q.remember(action, silentTime)
	}
}

// variant is a form of the request for an entry: its lease and its description.
type variant int

// The variants, in the order in which they are tried. A lease of 0 is not the first,
// because some devices reject it, and few devices reject all other leases.
const (
	asRequested variant = iota
	permanent
	atMostHour
	atMostWeek
	defaultDescription // a description that every device accepts
	permanentDefaultDescription
	variants
)

const week = 7 * 24 * time.Hour // the maximum lease in WANIPConnection:2

// apply returns an entry with the description and the lease of this variant.
func (v variant) apply(e PortMapping, r backends.Request) PortMapping {
	e.Description, e.Lease = r.Description, r.Lifetime
	if v >= defaultDescription {
		e.Description = "goforward"
	}
	switch v {
	case permanent, permanentDefaultDescription:
		e.Lease = 0
	case atMostHour:
		e.Lease = min(e.Lease, time.Hour)
	case atMostWeek:
		e.Lease = min(e.Lease, week)
	}
	if e.Lease == backends.Forever {
		e.Lease = 0
	}
	return e
}

// form returns the parts in which the variants of a request differ, as they are sent.
func (v variant) form(r backends.Request) PortMapping {
	e := v.apply(PortMapping{}, r)
	e.Description = wireDescription(e.Description)
	return e
}

// helpsAgainst reports whether a request in this form may succeed after a fault.
func (v variant) helpsAgainst(code FaultCode) bool {
	switch code {
	case OnlyPermanentLeasesSupported:
		return v == permanent || v == permanentDefaultDescription
	case StringArgumentTooLong:
		return v >= defaultDescription
	case InvalidArgs, ArgumentValueInvalid, ArgumentValueOutOfRange:
		return true
	}
	return v == permanent || v == defaultDescription
}
