package upnp

import (
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// quirks is what was learnt of a device that does not follow the standard, for
// as long as the backend lives.
type quirks struct {
	mu      sync.Mutex
	variant variant
	noAny   bool // AddAnyPortMapping does not work
}

// quirksOf returns what is known of a device.
func (b *Backend) quirksOf(g *gateway) *quirks {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.quirks[g.Device.UDN]
	if q == nil {
		if len(b.quirks) >= maxStrangers {
			clear(b.quirks)
		}
		q = &quirks{}
		b.quirks[g.Device.UDN] = q
	}
	return q
}

// locked runs f with the quirks to itself.
func (q *quirks) locked(f func(q *quirks)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f(q)
}

func (q *quirks) known() (v variant, noAny bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.variant, q.noAny
}

// variant is a way to word the request for an entry.
type variant struct {
	lease leaseForm
	plain bool // a description that nothing can be held against
}

type leaseForm uint8

const (
	asAsked leaseForm = iota
	permanent
	anHour
	aWeek
)

const (
	hour = time.Hour
	week = 7 * 24 * time.Hour // the longest of WANIPConnection:2
)

// variants are all, in the order in which to try them. A lease of 0 is not the
// first: there are devices that refuse that, and few refuse all others.
var variants = []variant{
	{asAsked, false},
	{permanent, false},
	{anHour, false},
	{aWeek, false},
	{asAsked, true},
	{permanent, true},
}

// apply words an entry for a request.
func (v variant) apply(e *PortMapping, r backends.Request) {
	e.Description = r.Description
	if v.plain {
		e.Description = "goforward"
	}
	e.Lease = r.Lifetime
	switch v.lease {
	case asAsked:
	case permanent:
		e.Lease = 0
	case anHour:
		e.Lease = min(e.Lease, hour)
	case aWeek:
		e.Lease = min(e.Lease, week)
	}
	if e.Lease == backends.Forever {
		e.Lease = 0
	}
}

// words is what of a request differs between the variants, as on the wire.
func (v variant) words(r backends.Request) words {
	var e PortMapping
	v.apply(&e, r)
	return words{e.Lease, wireDescription(e.Description)}
}

type words struct {
	lease       time.Duration
	description string
}

// cures reports whether wording the request this way can help against a refusal.
func (v variant) cures(code FaultCode) bool {
	switch code {
	case OnlyPermanentLeasesSupported:
		return v.lease == permanent
	case StringArgumentTooLong:
		return v.plain
	case InvalidArgs, ArgumentValueInvalid, ArgumentValueOutOfRange:
		return true
	case ActionFailed:
		return v == variant{lease: permanent} || v == variant{plain: true}
	}
	return false
}
