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

// Map creates a mapping, or a pinhole over IPv6. If the port is in use,
// possibly by another program of this host, and Exact is not set, the device
// may choose another port (AddAnyPortMapping). Otherwise Map fails with
// ErrConflict. Devices silently overwrite an entry of the same host, so Map
// first checks for an existing entry. Some devices report success without
// adding the entry, so Map then verifies that the entry exists.
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

// Renew requests the mapping again with its current port. If the device has
// lost the mapping and another client now has the port, Renew requests another
// port, unless Exact is set.
func (b *Backend) Renew(ctx context.Context, m backends.Mapping, r backends.Request) (renewed backends.Mapping, err error) {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Renewal)
	r.Protocol, r.Internal, r.External, r.Remote = m.Protocol, m.Internal, m.External, m.Remote
	if r.Exact { // Exact applies only to the port: the address may have changed
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

// addOp is the operation that adds one entry. It changes the request in
// response to the faults of the device.
type addOp struct {
	backend *Backend
	gateway *gateway
	client  *Client
	quirks  *quirks
	request backends.Request
	renewed *backends.Mapping // nil for a new mapping

	entry           PortMapping
	variant         variant
	refused         map[formKey]bool
	existing        PortMapping     // the entry found by checkPort or useDuplicate
	existingMatches bool            // existing has the same internal endpoint as entry
	portFree        bool            // the device reported that the port has no entry
	tried           map[string]bool // the remedies and the services that were tried
}

// addMapping adds an entry, or renews it if renewed is not nil.
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

// remoteHost returns the only remote host that may use the mapping. The zero
// Addr means any host.
func remoteHost(remote netip.AddrPort) netip.Addr {
	if a := remote.Addr().Unmap(); !a.IsUnspecified() {
		return a
	}
	return netip.Addr{}
}

// withLocalAddr replaces an unspecified address by this host's address as the
// device sees it.
func (g *gateway) withLocalAddr(addr netip.AddrPort) netip.AddrPort {
	a := addr.Addr().Unmap()
	if !a.IsValid() || a.IsUnspecified() {
		a = g.Device.Local
	}
	return netip.AddrPortFrom(a, addr.Port())
}

// roundUpToSecond rounds a lifetime up to whole seconds, because requests
// contain seconds.
func roundUpToSecond(d time.Duration) time.Duration {
	if rest := d % time.Second; rest != 0 && d < backends.Forever-time.Second {
		d += time.Second - rest
	}
	return d
}

// run checks the port, adds the entry, and verifies it.
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

// checkPort checks whether another client has the port.
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
	return nil // if the device does not report the entry, it may still report a conflict later
}

// checkPortByListing searches the table by index, for a device that cannot
// return a single entry.
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

// compareExisting checks whether the existing entry is the requested one or
// belongs to another client.
func (op *addOp) compareExisting(e PortMapping) error {
	switch {
	case e.Internal == op.entry.Internal:
		op.existing, op.existingMatches = e, true
	case e.Internal.Addr().IsValid():
		return fmt.Errorf("upnp: %w: %v port %d is forwarded to %v", backends.ErrConflict, op.entry.Protocol, op.entry.ExternalPort, e.Internal)
	}
	return nil
}

// reportLoss sends a hint to the watchers if the device has lost an entry that
// it had granted.
func (op *addOp) reportLoss(checkErr error) {
	const slack = 2 * time.Second // for clocks that count whole seconds
	if op.renewed == nil || !op.portFree && !errors.Is(checkErr, backends.ErrConflict) {
		return
	}
	if expires := op.renewed.Expires(); expires.IsZero() || time.Until(expires) > slack {
		op.backend.sendHint(hint{
			reason: fmt.Sprintf("%v port %d is missing from the gateway's table", op.entry.Protocol, op.entry.ExternalPort), strong: true,
		})
	}
}

// addEntry adds the entry and handles the faults of the device. A renewal adds
// nothing if the entry exists, is enabled and is permanent, as requested.
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

// addOnOtherPort requests another external port after a conflict. If the device
// supports AddAnyPortMapping, the device chooses the port. Otherwise,
// addOnOtherPort tries random ports for a renewal. For a new mapping, it returns
// the conflict, and leaves the choice of another port to the caller.
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

// addAny lets the device choose the port, starting from a suggestion. Some
// devices that do not support the action close the connection instead of
// sending a fault.
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
		return fmt.Errorf("%w: %v", backends.ErrUnsupported, err) //nolint:errorlint // %v: a connection error must not cause a new search
	}
	return err
}

// requestedLease returns the lifetime that was requested. In version 2, a lease
// of 0 means the longest lease, one week (WANIPConnection:2, section 2.3.16),
// except on devices that accept only permanent leases.
func (op *addOp) requestedLease() time.Duration {
	switch {
	case op.entry.Lease != 0:
		return op.entry.Lease
	case op.variant.lease == leaseAsRequested && op.client.Service().Version() > 1:
		return week
	}
	return backends.Forever
}

// classifyError reclassifies the faults of AddPortMapping whose code does not
// show the cause. Codes that wrap ErrInvalid, for example "no such entry", are
// not valid for this action and become ErrMalformed.
func (op *addOp) classifyError(err error) error {
	var f *Fault
	switch {
	case !errors.As(err, &f):
		return err
	case errors.Is(f, backends.ErrInvalid):
		return &reclassifiedFault{f, backends.ErrMalformed, "not a valid response to this action"}
	case f.Code != ActionNotAuthorized:
		return err
	case op.entry.Internal.Addr() != op.gateway.Device.Local:
		return &reclassifiedFault{f, backends.ErrNotAuthorized, fmt.Sprintf("to forward to another host, %v, than the requesting one", op.entry.Internal.Addr())}
	case op.entry.ExternalPort < 1024:
		return &reclassifiedFault{f, backends.ErrNotAuthorized, "perhaps because it does not permit ports below 1024"}
	}
	return &reclassifiedFault{f, backends.ErrNotAuthorized, "perhaps its settings must permit this host to open ports"}
}

// explainConflict adds a possible cause to a conflict on a port for which the
// device lists no entry.
func (op *addOp) explainConflict(external netip.Addr, err error) error {
	scope := backends.ScopeOf(external)
	if !errors.Is(err, backends.ErrConflict) || !op.portFree || scope != backends.ScopePrivate && scope != backends.ScopeShared {
		return err
	}
	return fmt.Errorf("%w: the gateway lists no entry for the port, and may refuse it because its external address, %v, is %v", err, external, scope)
}

// highPort returns a random port of the dynamic range (RFC 6335, section 6).
func highPort() uint16 { return uint16(49152 + rand.IntN(1<<14)) }

// verify checks that the device lists the entry, and returns the lifetime that
// was granted. If the device reports that there is no such entry, verify fails.
// If the request fails in any other way, verify returns the requested lifetime.
func (op *addOp) verify(ctx context.Context) (time.Duration, error) {
	requested := op.requestedLease()
	e, err := op.client.PortMapping(ctx, op.entry.Key())
	switch {
	case isNotFound(err):
		return 0, fmt.Errorf("upnp: %w: it reports that %v port %d is forwarded, but does not list it", backends.ErrNoResources, op.entry.Protocol, op.entry.ExternalPort)
	case err != nil: // also if the context has ended: the entry was added
		return requested, nil
	case e.Internal.Addr().IsValid() && e.Internal != op.entry.Internal:
		return 0, op.mismatchError(e)
	}
	const slack = 2 * time.Second
	switch {
	case e.Lease == 0: // permanent, or not reported
		return requested, nil
	case op.notExtended(e, requested):
		return op.deleteAndAdd(ctx, e.Lease)
	case requested-e.Lease > slack:
		return e.Lease, nil
	}
	return requested, nil
}

// mismatchError returns the error for an entry that the device lists for
// another internal endpoint. It is a conflict, after which another port may
// work, only if another program of this host has added its entry in the
// meantime.
func (op *addOp) mismatchError(e PortMapping) error {
	kind := backends.ErrNoResources
	if e.Internal.Addr() == op.entry.Internal.Addr() {
		kind = backends.ErrConflict
	}
	return fmt.Errorf("upnp: %w: %v port %d was requested for %v, but is listed for %v",
		kind, op.entry.Protocol, op.entry.ExternalPort, op.entry.Internal, e.Internal)
}

// notExtended reports whether a renewal did not extend the lease: the lease has
// not grown, and is shorter by more than a fifth than the lease granted before.
func (op *addOp) notExtended(e PortMapping, requested time.Duration) bool {
	if op.renewed == nil || !op.existingMatches || op.existing.Lease == 0 || e.Lease > op.existing.Lease {
		return false
	}
	granted := min(requested, op.renewed.Lifetime)
	return e.Lease < granted-granted/5
}

// deleteAndAdd replaces the entry on a device that does not extend leases. If
// the device does not delete the entry, the entry stays active for its
// remaining lifetime.
func (op *addOp) deleteAndAdd(ctx context.Context, remaining time.Duration) (time.Duration, error) {
	if err := op.client.DeletePortMapping(ctx, op.entry.Key()); err != nil && !isNotFound(err) {
		return remaining, transportError(err)
	}
	op.renewed, op.existingMatches = nil, false // the entry is now a new one
	if err := op.addEntry(ctx); err != nil {
		return 0, err
	}
	return op.verify(ctx)
}

// Unmap deletes the mapping. It succeeds if the device has no such entry, or if
// another client now has the port. If the device does not report the owner of
// the port, Unmap deletes only mappings with a Token: Map, Renew, List and
// EntryAt set the Token.
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
	if isConnectionCut(err) && ctx.Err() == nil { // the device may not have processed the request
		err = unmap()
	}
	return err
}

// isConnectionCut reports whether the connection ended before the response.
func isConnectionCut(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) && op.Op == "read" && !op.Timeout()
}

// deleteEntry deletes the entry of a mapping, unless the device reports that
// the entry belongs to another client.
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
	case err != nil && m.Token.IsZero(): // without a Token, the mapping may not be the caller's
		return fmt.Errorf("upnp: %w: the device does not report the owner of %v port %d: %w", backends.ErrUnsupported, m.Protocol, m.External.Port(), err)
	}
	if err := c.DeletePortMapping(ctx, key); !isNotFound(err) {
		return err
	}
	return nil
}
