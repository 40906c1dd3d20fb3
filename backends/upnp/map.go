package upnp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Map asks for a mapping, or over IPv6 for a pinhole. Where the port is taken,
// also by another program of this host, it fails with ErrConflict unless the
// device gives another itself (AddAnyPortMapping), which Exact forbids: devices
// overwrite entries of one host without a word, so the entry is looked for
// first. What was granted is looked for again: some devices only say so.
func (b *Backend) Map(ctx context.Context, r backends.Request) (m backends.Mapping, err error) {
	if err := b.Supports(r); err != nil {
		return m, err
	}
	err = b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
		if b.is6 {
			m, err = b.openPinhole(ctx, g, r)
		} else {
			m, err = b.addMapping(ctx, g, r, nil)
		}
		return err
	})
	return m, err
}

// Renew asks for the mapping again, with the port that it has. Where the device
// has lost it and somebody else has that port now, another one is asked for,
// unless Exact.
func (b *Backend) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (renewed backends.Mapping, err error) {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Renewal)
	r.Protocol, r.Internal, r.External, r.Remote = m.Protocol, m.Internal, m.External, m.Remote
	if r.Exact { // about the port: the address may have changed
		r.External = netip.AddrPortFrom(netip.Addr{}, m.External.Port())
	}
	if err := b.Supports(r); err != nil {
		return renewed, err
	}
	err = b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
		if b.is6 {
			renewed, err = b.renewPinhole(ctx, g, m, r)
		} else {
			renewed, err = b.addMapping(ctx, g, r, &m)
		}
		return err
	})
	return renewed, err
}

// addition is the request for one entry, as it changes with what the device
// refuses.
type addOp struct {
	backend *Backend
	gateway *gateway
	client  *Client
	quirks  *quirks
	request backends.Request
	renewed *backends.Mapping // nil: it is a new one

	entry           PortMapping
	variant         variant
	refused         map[formKey]bool
	existing        PortMapping     // as found
	existingMatches bool            // before is this very mapping
	portFree        bool            // the device says for certain that the port is
	tried           map[string]bool // what was tried
}

// add gets an entry, or gets it again.
func (b *Backend) addMapping(ctx context.Context, g *gateway, r backends.Request, renewed *backends.Mapping) (backends.Mapping, error) {
	unlock, err := g.lockTable(ctx)
	if err != nil {
		return backends.Mapping{}, err
	}
	defer unlock()
	r.Lifetime = roundUpToSecond(cmp.Or(r.Lifetime, DefaultLifetime))
	r.Internal = g.withLocalAddr(r.Internal)
	op := &addOp{
		backend: b, gateway: g, client: g.client, quirks: b.quirksOf(g), request: r, renewed: renewed,
		refused: map[formKey]bool{}, tried: map[string]bool{},
	}
	if renewed != nil {
		op.client = g.clientFor(renewed.Token)
	}
	op.tried[serviceKey(op.client)] = true
	op.variant, _ = op.quirks.get()
	op.entry = PortMapping{
		Remote: remoteHost(r.Remote), ExternalPort: cmp.Or(r.External.Port(), highPort()), Protocol: r.Protocol,
		Internal: r.Internal, Enabled: true,
	}
	return op.run(ctx)
}

// only is the host that alone is admitted; the zero Addr is anyone.
func remoteHost(remote netip.AddrPort) netip.Addr {
	if a := remote.Addr().Unmap(); !a.IsUnspecified() {
		return a
	}
	return netip.Addr{}
}

// internal fills in this host's address as the device sees it.
func (g *gateway) withLocalAddr(addr netip.AddrPort) netip.AddrPort {
	a := addr.Addr().Unmap()
	if !a.IsValid() || a.IsUnspecified() {
		a = g.Device.Local
	}
	return netip.AddrPortFrom(a, addr.Port())
}

// wholeSeconds rounds a lifetime up: that is what goes over the wire.
func roundUpToSecond(d time.Duration) time.Duration {
	if rest := d % time.Second; rest != 0 && d < backends.Forever-time.Second {
		d += time.Second - rest
	}
	return d
}

// run looks, adds and looks again.
func (op *addOp) run(ctx context.Context) (backends.Mapping, error) {
	external, err := op.backend.recentExternal(ctx, op.gateway)
	if err != nil {
		return backends.Mapping{}, err
	}
	sent := time.Now()
	err = op.checkPort(ctx)
	op.reportLoss(err)
	if err == nil {
		sent = time.Now()
		err = op.addEntry(ctx)
	}
	if errors.Is(err, backends.ErrConflict) && !op.request.Exact {
		sent = time.Now()
		err = op.addOnOtherPort(ctx, err)
	}
	if err != nil {
		return backends.Mapping{}, op.explainConflict(external, err)
	}
	lease, err := op.verify(ctx)
	if err != nil {
		return backends.Mapping{}, err
	}
	return backends.Mapping{
		Backend: Name, Gateway: op.gateway.addr(), Protocol: op.entry.Protocol,
		Internal: op.entry.Internal, External: netip.AddrPortFrom(external, op.entry.ExternalPort),
		Remote: op.request.Remote, Description: op.request.Description,
		Lifetime: lease, Granted: sent, Token: tokenOf(op.client.Service()),
	}, nil
}

// look finds out whether the port is somebody else's.
func (op *addOp) checkPort(ctx context.Context) error {
	op.existing, op.existingMatches, op.portFree = PortMapping{}, false, false
	e, err := op.client.PortMapping(ctx, op.entry.Key())
	switch {
	case err == nil:
		return op.compareExisting(e)
	case isNotFound(err):
		op.portFree = true
	case isFault(err, InvalidAction) || isFault(err, OptionalActionNotImplemented):
		if op.renewed == nil {
			return op.checkPortByListing(ctx)
		}
	case transportError(err) != nil:
		return err
	}
	return nil // who does not know will say so when asked to add
}

// lookThrough looks at the entries one after the other, in a device that cannot
// be asked for one.
func (op *addOp) checkPortByListing(ctx context.Context) error {
	const maxRows = 256
	n := 0
	for e, err := range op.client.entriesByIndex(ctx) {
		if err != nil {
			return transportError(err)
		}
		if e.Key() == op.entry.Key() {
			return op.compareExisting(e)
		}
		if n++; n == maxRows {
			break
		}
	}
	return nil
}

// judge takes the entry that is there for the one that is wanted, or for somebody
// else's.
func (op *addOp) compareExisting(e PortMapping) error {
	switch {
	case e.Internal == op.entry.Internal:
		op.existing, op.existingMatches = e, true
	case e.Internal.Addr().IsValid():
		return fmt.Errorf("upnp: %w: %v port %d is forwarded to %v", backends.ErrConflict, op.entry.Protocol, op.entry.ExternalPort, e.Internal)
	}
	return nil
}

// missed tells watchers where the device has lost what it had granted.
func (op *addOp) reportLoss(checkErr error) {
	const slack = 2 * time.Second // of clocks that count whole seconds
	if op.renewed == nil || !op.portFree && !errors.Is(checkErr, backends.ErrConflict) {
		return
	}
	if expires := op.renewed.Expires(); expires.IsZero() || time.Until(expires) > slack {
		op.backend.sendHint(hint{
			reason: fmt.Sprintf("%v port %d is gone from the gateway's table", op.entry.Protocol, op.entry.ExternalPort), strong: true,
		})
	}
}

// send adds the entry, and does what helps against what the device has to say
// against it. An entry that has no end and stands needs no adding.
func (op *addOp) addEntry(ctx context.Context) error {
	for {
		op.variant.apply(&op.entry, op.request)
		if op.renewed != nil && op.existingMatches && op.existing.Enabled && op.existing.Lease == 0 && op.requestedLease() == backends.Forever {
			return nil
		}
		err := op.client.AddPortMapping(ctx, op.entry)
		if err == nil {
			op.quirks.update(func(q *quirks) { q.variant = op.variant })
			return nil
		}
		retry, reclassified := op.retry(ctx, err)
		switch {
		case reclassified != nil:
			return reclassified
		case !retry:
			return op.classifyError(err)
		case ctx.Err() != nil:
			return fmt.Errorf("upnp: %w", context.Cause(ctx))
		}
	}
}

// elsewhere gets another external port after a conflict: from the device, if it
// chooses ports itself. A renewal goes on by itself; whoever asks for a new
// mapping has the choice.
func (op *addOp) addOnOtherPort(ctx context.Context, conflict error) error {
	const maxAttempts = 3
	for attempt := 0; attempt == 0 || op.renewed != nil && attempt < maxAttempts; attempt++ {
		op.entry.ExternalPort = highPort()
		if err := op.checkPort(ctx); errors.Is(err, backends.ErrConflict) {
			continue
		} else if err != nil {
			return err
		}
		err := op.addAny(ctx)
		if errors.Is(err, backends.ErrUnsupported) && op.renewed != nil {
			err = op.addEntry(ctx)
		}
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case !errors.Is(err, backends.ErrConflict) && !errors.Is(err, backends.ErrUnsupported):
			return err
		}
	}
	return conflict
}

// addAny lets the device choose the port, from a wish. Some devices cut the
// connection instead of an answer: they cannot.
func (op *addOp) addAny(ctx context.Context) error {
	if _, noAddAny := op.quirks.get(); noAddAny || op.client.Service().Version() < 2 {
		return backends.ErrUnsupported
	}
	op.variant.apply(&op.entry, op.request)
	port, err := op.client.AddAnyPortMapping(ctx, op.entry)
	switch {
	case err == nil:
		op.entry.ExternalPort, op.existingMatches = port, false
		return nil
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.Is(err, backends.ErrNoReply), errors.Is(err, backends.ErrMalformed),
		isFault(err, InvalidAction), isFault(err, OptionalActionNotImplemented):
		op.quirks.update(func(q *quirks) { q.noAddAny = true })
		return fmt.Errorf("%w: %v", backends.ErrUnsupported, err) //nolint:errorlint // not another reason to look for the device
	}
	return err
}

// asked is the lifetime that was asked for. In version 2, no lease is the longest
// there (WANIPConnection:2, section 2.3.16), but for devices that take no other.
func (op *addOp) requestedLease() time.Duration {
	switch {
	case op.entry.Lease != 0:
		return op.entry.Lease
	case op.variant.lease == leaseAsRequested && op.client.Service().Version() > 1:
		return week
	}
	return backends.Forever
}

// addError says better than a refusal to add why it is one. That there is no such
// entry, or that a request was invalid, is no answer to it.
func (op *addOp) classifyError(err error) error {
	var f *Fault
	switch {
	case !errors.As(err, &f):
		return err
	case errors.Is(f, backends.ErrInvalid):
		return &reclassifiedFault{f, backends.ErrMalformed, "no answer to a request to add"}
	case f.Code != ActionNotAuthorized:
		return err
	case op.entry.Internal.Addr() != op.gateway.Device.Local:
		return &reclassifiedFault{f, backends.ErrNotAuthorized, fmt.Sprintf("to forward to another host, %v, than the one that asks", op.entry.Internal.Addr())}
	case op.entry.ExternalPort < 1024:
		return &reclassifiedFault{f, backends.ErrNotAuthorized, "perhaps because ports below 1024 are not for everybody"}
	}
	return &reclassifiedFault{f, backends.ErrNotAuthorized, "perhaps its user has to let this host open ports"}
}

// because adds to a conflict over a port at which nothing is listed what else it
// may come from.
func (op *addOp) explainConflict(external netip.Addr, err error) error {
	scope := backends.ScopeOf(external)
	if !errors.Is(err, backends.ErrConflict) || !op.portFree || scope != backends.ScopePrivate && scope != backends.ScopeShared {
		return err
	}
	return fmt.Errorf("%w: it lists nothing there, and refuses perhaps because its external address, %v, is %v", err, external, scope)
}

// highPort is a random port of the dynamic range (RFC 6335, section 6).
func highPort() uint16 { return uint16(49152 + rand.IntN(1<<14)) }

// verify returns the lifetime that was granted, as far as the device lists what
// it has granted. One that cannot be asked is believed.
func (op *addOp) verify(ctx context.Context) (time.Duration, error) {
	requested := op.requestedLease()
	e, err := op.client.PortMapping(ctx, op.entry.Key())
	switch {
	case isNotFound(err):
		return 0, fmt.Errorf("upnp: %w: it says that %v port %d is forwarded, but does not list it", backends.ErrNoResources, op.entry.Protocol, op.entry.ExternalPort)
	case err != nil: // also that of a context that has ended: it stands all the same
		return requested, nil
	case e.Internal.Addr().IsValid() && e.Internal != op.entry.Internal:
		return 0, op.mismatchError(e)
	}
	const slack = 2 * time.Second
	switch {
	case e.Lease == 0: // also where it means nothing
		return requested, nil
	case op.notExtended(e, requested):
		return op.deleteAndAdd(ctx, e.Lease)
	case requested-e.Lease > slack:
		return e.Lease, nil
	}
	return requested, nil
}

// foreign is what an entry is that was granted, and listed for somebody else.
// Another port helps only if another program of this host was faster.
func (op *addOp) mismatchError(e PortMapping) error {
	kind := backends.ErrNoResources
	if e.Internal.Addr() == op.entry.Internal.Addr() {
		kind = backends.ErrConflict
	}
	return fmt.Errorf("upnp: %w: %v port %d was asked for %v, and is listed for %v",
		kind, op.entry.Protocol, op.entry.ExternalPort, op.entry.Internal, e.Internal)
}

// stale reports whether a renewal did not prolong the lease: it has not grown,
// and is shorter than what was granted before.
func (op *addOp) notExtended(e PortMapping, requested time.Duration) bool {
	if op.renewed == nil || !op.existingMatches || op.existing.Lease == 0 || e.Lease > op.existing.Lease {
		return false
	}
	granted := min(requested, op.renewed.Lifetime)
	return e.Lease < granted-granted/5
}

// replace deletes and adds, with a device that prolongs no lease. Where it will
// not delete, the entry stands for what is left.
func (op *addOp) deleteAndAdd(ctx context.Context, remaining time.Duration) (time.Duration, error) {
	if err := op.client.DeletePortMapping(ctx, op.entry.Key()); err != nil && !isNotFound(err) {
		return remaining, transportError(err)
	}
	op.renewed, op.existingMatches = nil, false // it is a new one now
	if err := op.addEntry(ctx); err != nil {
		return 0, err
	}
	return op.verify(ctx)
}

// Unmap deletes the mapping. Where the device has none, or somebody else has the
// port by now, it succeeds. A device that does not tell whose the port is, deletes
// only what has a Token: what was granted, or listed.
func (b *Backend) Unmap(ctx context.Context, m backends.Mapping) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Delete)
	if err := m.Check(); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	if m.External.Port() == 0 {
		return fmt.Errorf("upnp: %w: a mapping without an external port", backends.ErrInvalid)
	}
	unmap := func() error {
		return b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
			if b.is6 {
				return b.closePinhole(ctx, g, m)
			}
			return b.deleteEntry(ctx, g, m)
		})
	}
	err := unmap()
	if isConnectionCut(err) && ctx.Err() == nil { // TCP does not repeat the request
		err = unmap()
	}
	return err
}

// isCut reports whether a connection ended before its reply.
func isConnectionCut(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) && op.Op == "read" && !op.Timeout()
}

// remove deletes an entry if it is the mapping's, as far as the device tells.
func (b *Backend) deleteEntry(ctx context.Context, g *gateway, m backends.Mapping) error {
	unlock, err := g.lockTable(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	c := g.clientFor(m.Token)
	key := PortMappingKey{Remote: remoteHost(m.Remote), ExternalPort: m.External.Port(), Protocol: m.Protocol}
	e, err := c.PortMapping(ctx, key)
	switch {
	case err == nil && e.Internal.Addr().IsValid() && e.Internal != g.withLocalAddr(m.Internal):
		return nil
	case isNotFound(err):
		return nil
	case err != nil && transportError(err) != nil:
		return err
	case err != nil && m.Token.IsZero(): // not what was granted, but what somebody thinks was
		return fmt.Errorf("upnp: %w: the device does not tell whose %v port %d is: %w", backends.ErrUnsupported, m.Protocol, m.External.Port(), err)
	}
	if err := c.DeletePortMapping(ctx, key); !isNotFound(err) {
		return err
	}
	return nil
}
