package upnp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// retryDelay is the pause before a request is repeated after an unexplained
// failure.
const retryDelay = time.Second

// retry changes the request after an error. It reports whether to send the
// changed request. A non-nil error explains the failure better than addErr.
func (op *addOp) retry(ctx context.Context, addErr error) (retry bool, err error) {
	var status *HTTPError
	var f *Fault
	switch {
	case errors.As(addErr, &status) && status.Status/100 == 5 && op.firstTry("retry"):
		return true, sleep(ctx, op.backend.retryDelay)
	case !errors.As(addErr, &f): // the device may not have processed the request
		return isConnectionCut(addErr) && op.firstTry("retry"), nil
	}
	switch f.Code {
	case ConflictInMappingEntry:
		return op.replaceExisting(ctx, f)
	case SamePortValuesRequired:
		return op.useSamePort(ctx)
	case InvalidArgs, ArgumentValueInvalid, ArgumentValueOutOfRange, OnlyPermanentLeasesSupported, StringArgumentTooLong:
		return op.retryOtherForm(ctx, f)
	}
	if f.Code != ActionFailed && !f.Code.isUnknown() {
		return false, nil
	}
	// The code does not show the reason.
	if err := op.checkPrivateWAN(ctx, f); err != nil {
		return false, err
	}
	if f.Code == ActionFailed && op.firstTry("retry") {
		return true, sleep(ctx, op.backend.retryDelay)
	}
	return op.retryOtherForm(ctx, f)
}

// retryOtherForm changes the request after a fault that may be about the lease, the
// description or the external port.
func (op *addOp) retryOtherForm(ctx context.Context, f *Fault) (retry bool, err error) {
	if op.nextVariant(f.Code) {
		return true, nil
	}
	op.variant = asRequested
	if retry, err := op.useSamePort(ctx); retry || err != nil {
		return retry, err
	}
	return op.useHighPort(ctx)
}

// useHighPort sets the external port to a random high one, for a device that refuses some
// ports without a reason: low ones, or those that it uses itself.
func (op *addOp) useHighPort(ctx context.Context) (retry bool, err error) {
	if op.request.Exact || op.renewed != nil || !op.firstTry(highPortTried) {
		return false, nil
	}
	op.entry.ExternalPort = highPort()
	clear(op.refused)
	err = op.checkPort(ctx)
	return err == nil, err
}

// highPortTried is the remedy useHighPort in addOp.tried. refusedPortTime is how long a
// port is not requested again if a high port was granted instead.
const (
	highPortTried   = "high port"
	refusedPortTime = 10 * time.Minute
)

// portKey identifies the requested external port in what the quirks remember.
func (op *addOp) portKey() string {
	return fmt.Sprintf("%v port %d", op.request.Protocol, op.request.External.Port())
}

// firstTry reports whether a remedy was not tried before, and records it as
// tried.
func (op *addOp) firstTry(remedy string) bool {
	done := op.tried[remedy]
	op.tried[remedy] = true
	return !done
}

// nextVariant changes the request to the next variant that may help against a
// fault. It returns false if there is none.
func (op *addOp) nextVariant(code FaultCode) bool {
	op.refused[op.variant.form(op.request)] = true
	for v := range variants {
		if v.helpsAgainst(code) && !op.refused[v.form(op.request)] {
			op.variant = v
			return true
		}
	}
	return false
}

// checkPrivateWAN returns an error if the device refuses because its external
// address is private, or because it has none.
func (op *addOp) checkPrivateWAN(ctx context.Context, f *Fault) error {
	external, err := op.backend.recentExternal(ctx, op.client, op.request.Lifetime)
	if err != nil {
		return nil
	}
	switch backends.ScopeOf(external) {
	case backends.ScopePublic:
		return nil
	case backends.ScopeUnknown:
		s, err := op.backend.status(ctx, op.client)
		if err == nil && !s.Connected() {
			return f.because(backends.ErrNetworkFailure, fmt.Sprintf("the connection is %q and has no external address", s.Connection))
		}
		return f.because(backends.ErrPrivateWAN, "the gateway reports no address, probably for that reason")
	case backends.ScopeShared:
		return f.because(backends.ErrPrivateWAN, fmt.Sprintf("%v, behind the provider's NAT", external))
	case backends.ScopePrivate:
	}
	return f.because(backends.ErrPrivateWAN, fmt.Sprintf("%v, behind another router", external))
}

// replaceExisting handles a conflict. If the requested entry is for another
// host, the device does not permit such entries, and another port does not help.
// If this host already has an entry for the same endpoint and port, some devices
// accept a new entry only after the old one is deleted. Other devices permit only
// one external port for an endpoint, so the existing port must be used.
func (op *addOp) replaceExisting(ctx context.Context, f *Fault) (retry bool, err error) {
	switch {
	case op.entry.Internal.Addr() != op.gateway.Device.Local:
		// Not ErrConflict, because then other ports would be tried.
		return false, f.because(backends.ErrNotAuthorized, fmt.Sprintf("to forward to another host, %v, than the requesting one", op.entry.Internal.Addr()))
	case op.existingMatches && op.firstTry("replace"):
		err := op.backend.remove(ctx, op.gateway, op.client, op.existing)
		if err != nil && op.renewed == nil && ctx.Err() == nil {
			return false, nil // a conflict, so that another port is tried
		}
		return err == nil, err
	case !op.existingMatches && op.firstTry("duplicate"):
		return op.useDuplicate(ctx)
	}
	return false, nil
}

// useDuplicate searches for an entry with the same internal endpoint and
// another external port. It uses that entry instead. If Exact is set, it
// deletes the entry, provided that the entry has the description of this
// program.
func (op *addOp) useDuplicate(ctx context.Context) (retry bool, err error) {
	n := 0
	for e, err := range entriesByIndex(ctx, op.client.PortMappingAt) {
		if n++; err != nil || n > maxSearchRows {
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
			err := op.backend.remove(ctx, op.gateway, op.client, e)
			return err == nil, transportError(err)
		}
	}
	return false, nil
}

// useSamePort sets the external port to the internal one, for a device that
// supports no other mapping.
func (op *addOp) useSamePort(ctx context.Context) (retry bool, err error) {
	port := op.entry.Internal.Port()
	if op.request.Exact || op.entry.ExternalPort == port || !op.firstTry("same port") {
		return false, nil
	}
	op.entry.ExternalPort = port
	err = op.checkPort(ctx)
	return err == nil, err
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	if err := ctxsync.Sleep(ctx, d); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	return nil
}
