package upnp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// quirks is what was learnt of a device that does not follow the standard, for
// as long as the backend lives.
type quirks struct {
	mu       sync.Mutex
	variant  variant
	noAddAny bool // AddAnyPortMapping does not work
}

// quirksOf returns what is known of a device.
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

// locked runs f with the quirks to itself.
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

// variant is a way to word the request for an entry.
type variant struct {
	lease              leaseForm
	defaultDescription bool // a description that nothing can be held against
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
	week = 7 * 24 * time.Hour // the longest of WANIPConnection:2
)

// variants are all, in the order in which to try them. A lease of 0 is not the
// first: there are devices that refuse that, and few refuse all others.
var variants = []variant{
	{leaseAsRequested, false},
	{leasePermanent, false},
	{leaseHour, false},
	{leaseWeek, false},
	{leaseAsRequested, true},
	{leasePermanent, true},
}

// apply words an entry for a request.
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

// words is what of a request differs between the variants, as on the wire.
func (v variant) formKey(r backends.Request) formKey {
	var e PortMapping
	v.apply(&e, r)
	return formKey{e.Lease, wireDescription(e.Description)}
}

type formKey struct {
	lease       time.Duration
	description string
}

// cures reports whether wording the request this way can help against a refusal.
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

// once reports whether a cure was not tried yet, and notes that it is now.
func (op *addOp) firstTry(remedy string) bool {
	done := op.tried[remedy]
	op.tried[remedy] = true
	return !done
}

// breather is how long a device is left alone that failed for no reason given.
const retryDelay = time.Second

// cure changes the request after a refusal, and reports whether it is worth
// another try; or it says better than the refusal why it is not.
func (op *addOp) retry(ctx context.Context, addErr error) (retry bool, err error) {
	var status *HTTPError
	var f *Fault
	switch {
	case errors.As(addErr, &status):
		return op.switchService(ctx)
	case !errors.As(addErr, &f):
		return false, nil
	}
	switch f.Code {
	case ActionFailed:
		if err := op.checkPrivateWAN(ctx, f); err != nil {
			return false, err
		}
		if op.firstTry("retry") {
			return true, sleep(ctx, op.backend.retryDelay)
		}
		return op.nextVariant(f.Code), nil
	case OnlyPermanentLeasesSupported, StringArgumentTooLong:
		return op.nextVariant(f.Code), nil
	case InvalidArgs, ArgumentValueInvalid, ArgumentValueOutOfRange:
		if op.nextVariant(f.Code) {
			return true, nil
		}
		op.variant = variant{}
		return op.useSamePort(ctx)
	case ConflictInMappingEntry:
		return op.replaceExisting(ctx, f)
	case SamePortValuesRequired:
		return op.useSamePort(ctx)
	case InvalidAction, OptionalActionNotImplemented:
		return op.switchService(ctx)
	}
	return false, nil
}

// reword words the request another way that may help against the refusal.
func (op *addOp) nextVariant(code FaultCode) bool {
	op.refused[op.variant.formKey(op.request)] = true
	for _, v := range variants {
		if v.helpsAgainst(code) && !op.refused[v.formKey(op.request)] {
			op.variant = v
			return true
		}
	}
	return false
}

// privateWAN says whether the device refuses because its own external address is
// private, or because it has none.
func (op *addOp) checkPrivateWAN(ctx context.Context, f *Fault) error {
	external, err := op.client.ExternalAddr(ctx)
	if err != nil {
		return transportError(err)
	}
	switch backends.ScopeOf(external) {
	case backends.ScopePublic:
		return nil
	case backends.ScopeUnknown:
		s, err := op.client.Status(ctx)
		if err == nil && !s.Connected() {
			return &reclassifiedFault{f, backends.ErrNetworkFailure, fmt.Sprintf("it is %q and has no external address", s.Connection)}
		}
		return &reclassifiedFault{f, backends.ErrPrivateWAN, "or it has none: it tells none"}
	case backends.ScopeShared:
		return &reclassifiedFault{f, backends.ErrPrivateWAN, fmt.Sprintf("%v, behind the provider's NAT", external)}
	case backends.ScopePrivate:
	}
	return &reclassifiedFault{f, backends.ErrPrivateWAN, fmt.Sprintf("%v, behind another router", external)}
}

// displace is for an entry in the way. One for another host is a matter of
// policy, which no other port changes. This host's own, of the same endpoint,
// some devices want deleted first; others refuse a second external port for one
// endpoint, and then it has to be the first.
func (op *addOp) replaceExisting(ctx context.Context, f *Fault) (retry bool, err error) {
	switch {
	case op.entry.Internal.Addr() != op.gateway.Device.Local:
		// Not a conflict, for which other ports would be tried.
		return false, &reclassifiedFault{f, backends.ErrNotAuthorized, fmt.Sprintf("to forward to another host, %v, than the one that asks", op.entry.Internal.Addr())}
	case op.existingMatches && op.firstTry("replace"):
		if err := op.client.DeletePortMapping(ctx, op.entry.Key()); err != nil && !isNotFound(err) {
			return false, err
		}
		return true, nil
	case !op.existingMatches && op.firstTry("duplicate"):
		return op.useDuplicate(ctx)
	}
	return false, nil
}

// takeTwin looks for an entry of the same endpoint under another external port:
// it is used in its place or, where the port matters and it is this program's,
// deleted.
func (op *addOp) useDuplicate(ctx context.Context) (retry bool, err error) {
	const maxRows = 256
	n := 0
	for e, err := range op.client.entriesByIndex(ctx) {
		if n++; err != nil || n > maxRows {
			return false, transportError(err)
		}
		if e.ExternalPort == 0 || e.Protocol != op.entry.Protocol || e.Internal != op.entry.Internal || e.Remote != op.entry.Remote {
			continue
		}
		if !op.request.Exact {
			op.entry.ExternalPort, op.existing, op.existingMatches, op.portFree = e.ExternalPort, e, true, false
			return true, nil
		}
		if e.Description == wireDescription(op.request.Description) {
			err := op.client.DeletePortMapping(ctx, e.Key())
			return err == nil || isNotFound(err), transportError(err)
		}
	}
	return false, nil
}

// sameNumber makes the external port the internal one, for a device that knows
// no other way.
func (op *addOp) useSamePort(ctx context.Context) (retry bool, err error) {
	port := op.entry.Internal.Port()
	if op.request.Exact || op.entry.ExternalPort == port || !op.firstTry("same port") {
		return false, nil
	}
	op.entry.ExternalPort = port
	err = op.checkPort(ctx)
	return err == nil, err
}

// serviceCure names a service as a cure.
func serviceKey(c *Client) string { return c.service.Type + " " + c.service.ControlURL }

// otherService goes on with another service of the device, where this one does
// not know what it must. It has a table of its own.
func (op *addOp) switchService(ctx context.Context) (retry bool, err error) {
	for _, c := range append([]*Client{op.gateway.client}, op.gateway.otherClients...) {
		if op.firstTry(serviceKey(c)) && c != op.client {
			op.client = c
			err := op.checkPort(ctx)
			return err == nil, err
		}
	}
	return false, nil
}

// sleep waits for a time, unless ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	if err := ctxsync.Sleep(ctx, d); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	return nil
}
