package upnp

import (
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// quirks contains what was observed on a service of a device. The backend keeps it
// as long as it exists, unless it has used many services.
type quirks struct {
	mu     sync.Mutex
	state  quirkState
	recent map[string]time.Time // what failed, and when: see remember
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
		q = &quirks{recent: map[string]time.Time{}}
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

// memoryTime is how long a failure is remembered. maxRecent is the maximum number of
// failures that are remembered.
const (
	memoryTime = 10 * time.Minute
	maxRecent  = 64
)

// remember records that something failed: an action got no reply, or a port was refused.
func (q *quirks) remember(what string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.recent) >= maxRecent {
		clear(q.recent)
	}
	q.recent[what] = time.Now()
}

// remembers reports whether it failed within memoryTime.
func (q *quirks) remembers(what string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	at, is := q.recent[what]
	return is && time.Since(at) < memoryTime
}

// variant is a form of the request for an entry.
type variant struct {
	lease              leaseForm
	defaultDescription bool // use a description that every device accepts
}

type leaseForm uint8

const (
	leaseAsRequested leaseForm = iota
	leasePermanent
	leaseHour
	leaseWeek
)

const (
	hour = time.Hour
	week = 7 * 24 * time.Hour // the maximum in WANIPConnection:2
)

// variants contains all variants in the order in which they are tried. A lease
// of 0 is not the first, because some devices reject it, and few devices reject
// all other leases.
var variants = []variant{
	{leaseAsRequested, false},
	{leasePermanent, false},
	{leaseHour, false},
	{leaseWeek, false},
	{leaseAsRequested, true},
	{leasePermanent, true},
}

// apply sets the description and the lease of an entry for a request.
func (v variant) apply(e *PortMapping, r backends.Request) {
	e.Description = r.Description
	if v.defaultDescription {
		e.Description = "goforward"
	}
	e.Lease = r.Lifetime
	switch v.lease {
	case leaseAsRequested:
	case leasePermanent:
		e.Lease = 0
	case leaseHour:
		e.Lease = min(e.Lease, hour)
	case leaseWeek:
		e.Lease = min(e.Lease, week)
	}
	if e.Lease == backends.Forever {
		e.Lease = 0
	}
}

// formKey returns the part of a request in which the variants differ, as it is
// sent. Variants with the same key produce the same request.
func (v variant) formKey(r backends.Request) formKey {
	var e PortMapping
	v.apply(&e, r)
	return formKey{e.Lease, wireDescription(e.Description)}
}

type formKey struct {
	lease       time.Duration
	description string
}

// helpsAgainst reports whether a request in this form may succeed after a
// fault.
func (v variant) helpsAgainst(code FaultCode) bool {
	switch code {
	case OnlyPermanentLeasesSupported:
		return v.lease == leasePermanent
	case StringArgumentTooLong:
		return v.defaultDescription
	case InvalidArgs, ArgumentValueInvalid, ArgumentValueOutOfRange:
		return true
	}
	return v == variant{lease: leasePermanent} || v == variant{defaultDescription: true}
}
