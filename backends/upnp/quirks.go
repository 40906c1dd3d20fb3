package upnp

import (
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// quirks contains the deviations from the standard that were observed on a
// device. The backend keeps them as long as it exists, unless it has used many
// devices.
type quirks struct {
	mu       sync.Mutex
	variant  variant
	noAddAny bool // AddAnyPortMapping does not work
}

// quirksOf returns the quirks of a device. If the number of devices reaches a
// limit, the quirks of all other devices are dropped.
func (b *Backend) quirksOf(g *gateway) *quirks {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.quirks[g.Device.UDN]
	if q == nil {
		if len(b.quirks) >= maxNonGateways {
			clear(b.quirks)
		}
		q = &quirks{}
		b.quirks[g.Device.UDN] = q
	}
	return q
}

// update calls f with the lock held.
func (q *quirks) update(f func(q *quirks)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f(q)
}

func (q *quirks) get() (v variant, noAddAny bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.variant, q.noAddAny
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
	case ActionFailed:
		return v == variant{lease: leasePermanent} || v == variant{defaultDescription: true}
	}
	return false
}
