package upnp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
// port, unless Exact is set. If the device does not reply to the request for its
// external address, the result has the previous one.
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
	backend  *Backend
	gateway  *gateway
	request  backends.Request
	renewed  *backends.Mapping // nil for a new mapping
	services []*Client         // in the order in which they are tried

	// The fields below are for the service in use.
	client          *Client
	entry           PortMapping
	variant         variant
	refused         map[PortMapping]bool // the forms of the request that the device refused
	existing        PortMapping          // the entry found by checkPort or useDuplicate
	existingMatches bool                 // existing has the same internal endpoint as entry
	portFree        bool                 // the device reported that the port has no entry
	tried           map[string]bool      // the remedies that were tried
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
	op := &addOp{backend: b, gateway: g, request: r, renewed: renewed, services: g.startingWith(g.client)}
	if renewed != nil {
		clients, _ := g.clientsFor(renewed.Token)
		op.services = g.startingWith(clients[0])
	}
	return op.run(ctx)
}

// use starts the operation at a service.
func (op *addOp) use(c *Client) {
	op.client, op.refused, op.tried = c, map[PortMapping]bool{}, map[string]bool{}
	op.variant = op.quirks().get().variant
	op.entry = PortMapping{
		Remote: remoteHost(op.request.Remote), ExternalPort: cmp.Or(op.request.External.Port(), highPort()),
		Protocol: op.request.Protocol, Internal: op.request.Internal, Enabled: true,
	}
	if op.renewed == nil && !op.request.Exact && op.quirks().remembers(op.portKey()) {
		op.entry.ExternalPort = highPort()
	}
}

// quirks returns the quirks of the service in use.
func (op *addOp) quirks() *quirks { return op.backend.quirksOf(op.client) }

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

// entryOf returns what identifies the entry of a mapping in the table.
func (g *gateway) entryOf(m backends.Mapping) PortMapping {
	return PortMapping{
		Remote: remoteHost(m.Remote), ExternalPort: m.External.Port(), Protocol: m.Protocol, Internal: g.withLocalAddr(m.Internal),
	}
}

// roundUpToSecond rounds a lifetime up to whole seconds, because requests
// contain seconds.
func roundUpToSecond(d time.Duration) time.Duration {
	if rest := d % time.Second; rest != 0 && d < backends.Forever-time.Second {
		d += time.Second - rest
	}
	return d
}

// run adds the entry. If a service refuses it, or reports a success that its table
// contradicts, run continues with the next service of the device. Each service has its own
// table. A disconnected service may accept entries that forward nothing, so it replaces
// a connected one only if that does not support the request.
func (op *addOp) run(ctx context.Context) (backends.Mapping, error) {
	var failure error
	for i, c := range op.services {
		if i > 0 && op.gateway.Status.Connected() && !errors.Is(failure, backends.ErrUnsupported) {
			if s, err := op.backend.status(ctx, c); err == nil && s.Connection != "" && !s.Connected() {
				continue
			}
		}
		op.use(c)
		sent, lease, err := op.addAndVerify(ctx)
		if err == nil {
			return op.mapping(ctx, sent, lease), nil
		}
		if failure == nil || errors.Is(failure, backends.ErrUnsupported) {
			failure = op.explainConflict(ctx, err)
		}
		isRefusal := errors.As(err, new(*Fault)) || errors.As(err, new(*HTTPError)) || errors.As(err, new(*deniedError))
		if !isRefusal || errors.Is(err, backends.ErrConflict) {
			break
		}
	}
	return backends.Mapping{}, failure
}

// mapping returns the mapping of the added entry. A renewal that another service granted
// deletes this host's old entry at the first one. A renewal by the same service keeps the
// external address if there is no reply to the request for it.
func (op *addOp) mapping(ctx context.Context, sent time.Time, lease time.Duration) backends.Mapping {
	if first := op.services[0]; op.renewed != nil && op.client != first {
		old := op.entry
		old.ExternalPort = op.renewed.External.Port()
		if _, shown, _ := op.backend.lookUp(ctx, first, old); shown == found && first.DeletePortMapping(ctx, old.Key()) == nil {
			_ = op.client.AddPortMapping(ctx, op.entry) // both services may have the same table
		}
	}
	external, err := op.backend.recentExternal(ctx, op.client, lease)
	if op.renewed != nil && op.client == op.services[0] && transportError(err) != nil {
		external = op.renewed.External.Addr()
	}
	op.backend.promote(ctx, op.gateway, op.client)
	return backends.Mapping{
		Backend: Name, Gateway: op.client.addr(), Protocol: op.entry.Protocol,
		Internal: op.entry.Internal, External: netip.AddrPortFrom(external, op.entry.ExternalPort),
		Remote: op.request.Remote, Description: op.request.Description,
		Lifetime: lease, Granted: sent, Token: tokenOf(op.client.Service()),
	}
}

// addAndVerify checks the port, adds the entry, and verifies it. sent is the time at
// which the lease began.
func (op *addOp) addAndVerify(ctx context.Context) (sent time.Time, lease time.Duration, err error) {
	err = op.checkPort(ctx)
	if !ctxsync.IsLossKnown(ctx) {
		op.reportLoss(err)
	}
	sent = time.Now()
	if err == nil {
		err = op.addEntry(ctx)
	}
	if errors.Is(err, backends.ErrConflict) && !op.request.Exact {
		sent = time.Now()
		err = op.addOnOtherPort(ctx, err)
	}
	if err == nil {
		lease, err = op.verify(ctx)
	}
	return sent, lease, err
}

// checkPort checks whether another client has the port. For a device that cannot return
// a single entry, it searches the table by index.
func (op *addOp) checkPort(ctx context.Context) error {
	op.existing, op.existingMatches, op.portFree = PortMapping{}, false, false
	e, result, err := op.backend.findByKey(ctx, op.client, op.entry)
	if ctx.Err() != nil || Moved(err) {
		return err
	}
	if result == notKnown && op.renewed == nil {
		e, result = op.backend.findByIndex(ctx, op.client, op.entry)
	}
	op.portFree = result.isAbsent()
	if result != found && result != otherEntry {
		return nil // if the device does not report the entry, it may still report a conflict later
	}
	return op.compareExisting(e)
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

// leaseSlack is the tolerance for clocks that count whole seconds.
const leaseSlack = 2 * time.Second

// reportLoss sends a hint to the watchers if the device has lost an entry that
// it had granted. On some devices, the lookup finds no entry at all.
func (op *addOp) reportLoss(checkErr error) {
	isLost := op.portFree && op.quirks().get().findsByKey || errors.Is(checkErr, backends.ErrConflict)
	if op.renewed == nil || !isLost {
		return
	}
	if expires := op.renewed.Expires(); expires.IsZero() || time.Until(expires) > leaseSlack {
		op.backend.sendHint(hint{
			reason: fmt.Sprintf("%v port %d is missing from the gateway's table", op.entry.Protocol, op.entry.ExternalPort), strong: true,
		})
	}
}

// addEntry adds the entry and handles the faults of the device. A renewal adds
// nothing if the entry exists, is enabled and is permanent, as requested.
func (op *addOp) addEntry(ctx context.Context) error {
	for {
		op.entry = op.variant.apply(op.entry, op.request)
		if op.renewed != nil && op.existingMatches && op.existing.Enabled && op.existing.Lease == 0 && op.requestedLease() == backends.Forever {
			return nil
		}
		err := op.add(ctx)
		if err == nil {
			op.quirks().update(func(q *quirkState) { q.variant = op.variant })
			if op.tried[highPortTried] {
				op.quirks().remember(op.portKey(), refusedPortTime)
			}
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

// add performs AddPortMapping. If the response is lost, add looks the entry up.
func (op *addOp) add(ctx context.Context) error {
	bounded, cancel := beforeDeadline(ctx)
	defer cancel()
	sent := time.Now()
	err := op.client.AddPortMapping(bounded, op.entry)
	if op.wasAdded(ctx, sent, err) {
		return nil
	}
	return err
}

// beforeDeadline returns a context that ends early enough before the deadline of ctx for
// one more request.
func beforeDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if left := time.Until(deadline); ok && left > 2*optionalTimeout {
		return withTimeout(ctx, left-optionalTimeout)
	}
	return context.WithCancel(ctx)
}

// wasAdded reports whether the table lists the entry although the response to the request
// for it was lost. If the connection was not cut, the device may still be busy with the
// request, so wasAdded looks twice. An entry that existed before counts only if its lease
// has been extended.
func (op *addOp) wasAdded(ctx context.Context, sent time.Time, err error) bool {
	if !errors.Is(err, backends.ErrNoReply) || Moved(err) {
		return false
	}
	for i := 0; i == 0 || i == 1 && !isConnectionCut(err) && sleep(ctx, op.backend.retryDelay) == nil; i++ {
		e, result, _ := op.backend.lookUp(ctx, op.client, op.entry)
		if result == found && (!op.existingMatches || e.Lease+leaseSlack+time.Since(sent) >= op.requestedLease()) {
			return true
		}
	}
	return false
}

// addOnOtherPort requests another external port after a conflict. If the device
// supports AddAnyPortMapping, the device chooses the port. Otherwise, addOnOtherPort
// tries random ports for a renewal, and for a request for any port. For a request for a
// certain port, it returns the conflict, and leaves the choice of another port to the
// caller.
func (op *addOp) addOnOtherPort(ctx context.Context, conflict error) error {
	maxAttempts, anyPort := 1, op.renewed != nil || op.request.External.Port() == 0
	if anyPort {
		maxAttempts = 3
	}
	for range maxAttempts {
		op.entry.ExternalPort = highPort()
		if err := op.checkPort(ctx); errors.Is(err, backends.ErrConflict) {
			continue
		} else if err != nil {
			return err
		}
		err := op.addAny(ctx)
		if errors.Is(err, backends.ErrUnsupported) && anyPort {
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
	if op.quirks().get().noAddAny || op.client.Service().Version() < 2 {
		return backends.ErrUnsupported
	}
	op.entry = op.variant.apply(op.entry, op.request)
	sent := time.Now()
	port, err := op.client.AddAnyPortMapping(ctx, op.entry)
	if op.wasAdded(ctx, sent, err) {
		port, err = op.entry.ExternalPort, nil
	}
	switch {
	case err == nil:
		op.entry.ExternalPort, op.existingMatches = port, false
		return nil
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.Is(err, backends.ErrNoReply), errors.Is(err, backends.ErrMalformed),
		isFault(err, InvalidAction), isFault(err, OptionalActionNotImplemented):
		op.quirks().update(func(q *quirkState) { q.noAddAny = true })
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
	case op.variant != permanent && op.variant != permanentDefaultDescription && op.client.Service().Version() > 1:
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
		return f.because(backends.ErrMalformed, "not a valid response to this action")
	case f.Code != ActionNotAuthorized:
		return err
	case op.entry.Internal.Addr() != op.gateway.Device.Local:
		return f.because(backends.ErrNotAuthorized, fmt.Sprintf("to forward to another host, %v, than the requesting one", op.entry.Internal.Addr()))
	case op.entry.ExternalPort < 1024:
		return f.because(backends.ErrNotAuthorized, "perhaps because it does not permit ports below 1024")
	}
	return f.because(backends.ErrNotAuthorized, "perhaps its settings must permit this host to open ports")
}

// explainConflict adds a possible cause to a conflict on a port for which the
// device lists no entry.
func (op *addOp) explainConflict(ctx context.Context, err error) error {
	if !errors.Is(err, backends.ErrConflict) || !op.portFree {
		return err
	}
	external, _ := op.backend.recentExternal(ctx, op.client, op.request.Lifetime)
	scope := backends.ScopeOf(external)
	if scope != backends.ScopePrivate && scope != backends.ScopeShared {
		return err
	}
	return fmt.Errorf("%w: the gateway lists no entry for the port, and may refuse it because its external address, %v, is %v", err, external, scope)
}

// highPort returns a random port of the dynamic range (RFC 6335, section 6).
func highPort() uint16 { return uint16(49152 + rand.IntN(1<<14)) }

// deniedError is returned if a device reports success, but its table shows that the entry
// does not exist or forwards nothing. It wraps backends.ErrNoResources.
type deniedError struct{ text string }

func (e *deniedError) Error() string {
	return fmt.Sprintf("upnp: %v: %s", backends.ErrNoResources, e.text)
}
func (e *deniedError) Unwrap() error { return backends.ErrNoResources }

// verify checks that the table of the service lists the entry, and returns the lifetime
// that was granted. If the table lists no such entry, a disabled one, or one for another
// endpoint, verify deletes what was added and fails. If the table cannot be read, verify
// returns the requested lifetime.
func (op *addOp) verify(ctx context.Context) (time.Duration, error) {
	requested := op.requestedLease()
	e, result, _ := op.backend.lookUp(ctx, op.client, op.entry) // also if the context has ended: the entry was added
	port := fmt.Sprintf("%v port %d", op.entry.Protocol, op.entry.ExternalPort)
	switch {
	case result == notKnown:
		return requested, nil
	case result.isAbsent():
		return 0, op.withdraw(ctx, op.entry, &deniedError{"it reports that " + port + " is forwarded, but does not list it"})
	case result == otherEntry && e.Internal.Addr() == op.entry.Internal.Addr():
		// Another program of this host has added its entry in the meantime.
		return 0, fmt.Errorf("upnp: %w: %s was requested for %v, but is listed for %v", backends.ErrConflict, port, op.entry.Internal, e.Internal)
	case result == otherEntry:
		err := &deniedError{fmt.Sprintf("%s was requested for %v, but is listed for %v", port, op.entry.Internal, e.Internal)}
		if !op.portFree || e.Description != wireDescription(op.entry.Description) { // the entry may be of another host
			return 0, err
		}
		return 0, op.withdraw(ctx, e, err)
	case !e.Enabled:
		return 0, op.withdraw(ctx, e, &deniedError{"it lists " + port + ", but does not forward it: the entry is disabled"})
	}
	switch {
	case e.Lease == 0: // permanent, or not reported
		return requested, nil
	case op.notExtended(e, requested):
		return op.deleteAndAdd(ctx, e.Lease)
	case requested-e.Lease > leaseSlack:
		return e.Lease, nil
	}
	return requested, nil
}

// withdraw deletes an entry that was added and is not reported, and returns the reason.
func (op *addOp) withdraw(ctx context.Context, e PortMapping, reason error) error {
	if err := op.backend.remove(ctx, op.gateway, op.client, e); err != nil {
		return &remainsError{reason, err}
	}
	return reason
}

// remainsError is returned if an entry that is not reported cannot be deleted. It wraps
// backends.ErrNoReply, so that the caller treats the entry as one that may exist.
type remainsError struct{ reason, deletion error }

func (e *remainsError) Error() string {
	return fmt.Sprintf("%v; the entry cannot be deleted: %v", e.reason, e.deletion)
}
func (e *remainsError) Unwrap() []error { return []error{e.reason, backends.ErrNoReply} }

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
	if err := op.backend.remove(ctx, op.gateway, op.client, op.entry); err != nil {
		return remaining, transportError(err)
	}
	op.renewed, op.existingMatches = nil, false // the entry is now a new one
	if err := op.addEntry(ctx); err != nil {
		return 0, err
	}
	return op.verify(ctx)
}
