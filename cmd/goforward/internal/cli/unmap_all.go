package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
)

// unmapAll deletes the mappings to this host that the gateway lists, and those that NAT-PMP
// created even if the gateway does not list them. PCP has no request that deletes all mappings
// of a host: each mapping has a nonce of its own. unmapAll returns the listed mappings that
// failed, and other errors.
func (a *app) unmapAll(ctx context.Context, u *unmapRequest, result *probeResult) (mapErrors, error) {
	requests, errs, unlisted := a.requestsForTable(ctx, u, result)
	byNATPMP := natpmpOf(result)
	if unlisted != nil {
		switch {
		case byNATPMP == nil:
			return nil, unlisted
		case !u.hasBothProtocols():
			unlisted.advice = "name the ports, or omit -p and -u: on many gateways, the NAT-PMP request for one protocol deletes the mappings of both"
			return nil, unlisted
		}
	}
	failures := a.unmap(ctx, requests, result)
	// If a listed mapping stays, for example because another program keeps it alive, the
	// request for all mappings must not delete it.
	if byNATPMP != nil && u.hasBothProtocols() && len(failures) == 0 {
		if err := a.unmapAllNATPMP(ctx, u, byNATPMP, result, unlisted != nil || len(errs) > 0); err != nil {
			errs = append(errs, err)
		}
	}
	switch {
	case unlisted != nil:
		a.printUnlisted(result)
	case len(requests) == 0 && len(errs) == 0:
		a.messagef("No mapping of the gateway forwards to this host: nothing to delete.\n")
	}
	return failures, errors.Join(errs...)
}

// requestsForTable returns a request for each protocol and internal port of this host in the
// gateway's table, errors of the table and of its entries, and the reason if there is no table.
func (a *app) requestsForTable(ctx context.Context, u *unmapRequest, result *probeResult) (requests []*unmapRequest, errs []error, unlisted *listError) {
	none := a.newListError("--all", "name the ports, as in goforward unmap 8080")
	for _, b := range result.available {
		l, ok := b.Backend.(backends.Lister)
		if !ok {
			none.nonListers = append(none.nonListers, b.title)
			continue
		}
		fromTable, tableErrs, err := a.requestsFrom(ctx, u, b, l)
		if err != nil {
			none.reasons = append(none.reasons, err)
			continue
		}
		return fromTable, tableErrs, nil
	}
	for _, b := range result.unavailable {
		if isLister(b.Backend) {
			none.reasons = append(none.reasons, b.err)
			none.advice += ", or switch on UPnP in the gateway's settings"
		}
	}
	return nil, nil, none
}

// requestsFrom is requestsForTable for one backend. If the gateway cannot list its table, the
// last result is the reason.
func (a *app) requestsFrom(ctx context.Context, u *unmapRequest, b availableBackend, l backends.Lister) (requests []*unmapRequest, errs []error, unsupported error) {
	type port struct {
		protocol backends.Protocol
		internal uint16
	}
	seen, entries := map[port]bool{}, 0
	for e, err := range l.List(ctx) {
		switch {
		case err != nil && entries == 0 && errors.Is(err, backends.ErrUnsupported):
			return nil, nil, err
		case err != nil && entries == 0:
			return nil, []error{fmt.Errorf("the gateway does not list its mappings: %w", err)}, nil
		case err != nil:
			return requests, append(errs, fmt.Errorf("the gateway does not list all its mappings: %w", err)), nil
		}
		entries++
		m := e.Mapping
		text := mappingText([]backends.Mapping{m})
		p := port{m.Protocol, m.Internal.Port()}
		switch {
		case u.protocols != nil && !slices.Contains(u.protocols, m.Protocol):
		case !m.Internal.Addr().IsValid():
			a.messagef("%s stays: the gateway does not report the address of the host.\n", text)
		case !b.forwardsHere(m):
		case m.Check() != nil || m.External.Port() == 0:
			errs = append(errs, fmt.Errorf("%s: %w: no request deletes an entry without a protocol or port", text, backends.ErrUnsupported))
		case !seen[p]:
			seen[p] = true
			one := *u
			one.protocols, one.internal, one.count = []backends.Protocol{p.protocol}, p.internal, 1
			requests = append(requests, &one)
		}
	}
	return requests, errs, nil
}

// natpmpOf returns the NAT-PMP backend, or nil if it is not available.
func natpmpOf(result *probeResult) *natpmp.Backend {
	for _, b := range result.available {
		if n, ok := b.Backend.(*natpmp.Backend); ok {
			return n
		}
	}
	return nil
}

// hasBothProtocols reports whether the request is for all protocols of NAT-PMP. On many
// gateways, a NAT-PMP request for all mappings of one protocol deletes those of the other too.
func (u *unmapRequest) hasBothProtocols() bool {
	return u.protocols == nil || slices.Contains(u.protocols, backends.TCP) && slices.Contains(u.protocols, backends.UDP)
}

// unmapAllNATPMP sends the requests that delete all NAT-PMP mappings of this host (RFC 6886,
// section 3.4), and no mapping of another host. It prints the result if report is true.
func (a *app) unmapAllNATPMP(ctx context.Context, u *unmapRequest, b *natpmp.Backend, result *probeResult, report bool) error {
	if err := checkNoneHeld(result); err != nil && !u.force {
		return err
	}
	var done []backends.Mapping // internal port 0 means all ports
	var errs []error
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP} {
		if !u.dryRun {
			if err := b.Client().UnmapAll(ctx, p); err != nil {
				errs = append(errs, fmt.Errorf("all %v mappings: %w", p, err))
				continue
			}
		}
		done = append(done, backends.Mapping{Protocol: p, Internal: netip.AddrPortFrom(netip.Addr{}, 0)})
	}
	if report && len(done) > 0 {
		a.printAllUnmapped(u, done, result)
	}
	if errors.Is(errors.Join(errs...), backends.ErrNotAuthorized) {
		errs = append(errs, errors.New("  → NAT-PMP deletes no mapping that PCP created: name its port, as in goforward unmap 8080"))
	}
	return errors.Join(errs...)
}

// printAllUnmapped prints the result of the requests that delete all NAT-PMP mappings.
func (a *app) printAllUnmapped(u *unmapRequest, done []backends.Mapping, result *probeResult) {
	by := []string{natpmp.Name}
	event := "unmapped"
	if u.dryRun {
		event = "dry_run"
	}
	switch {
	case u.dryRun && !a.settings.json:
		a.resultf("all %s mappings of this host: would be deleted, %s\n", protocolsText(done), byAtText(by, result))
	case !u.dryRun:
		a.messagef("all %s mappings of this host: not forwarded any more, %s\n", protocolsText(done), byAtText(by, result))
	}
	if a.settings.json {
		a.printUnmapRecords(event, done, by, result)
	}
}

// printUnlisted prints which mappings may remain if the gateway does not list its table.
func (a *app) printUnlisted(result *probeResult) {
	var others []string
	for _, b := range result.available {
		if b.name != natpmp.Name {
			others = append(others, b.title)
		}
	}
	if len(others) > 0 {
		a.messagef("The gateway does not list its mappings: those that %s created may remain. Name their ports, as in goforward unmap 8080.\n", joinNames(others))
	}
}
