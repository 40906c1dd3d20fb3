package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// take takes away by one backend what the request says: that is all that is
// known of a mapping that another process made. It returns what the gateway
// listed of it.
func (u *unmapRequest) unmapFrom(ctx context.Context, b availableBackend, r backends.Request) ([]backends.Mapping, error) {
	if err := b.Supports(r); err != nil {
		return nil, err
	}
	l, lists := b.Backend.(backends.Lister)
	switch {
	case lists && b.gateway.Addr().Is6():
		return nil, unmapPinhole(ctx, b, r)
	case lists:
		return u.unmapListed(ctx, b, l, r)
	case u.anyHost():
		return nil, fmt.Errorf("%s: %w: it does not tell what leads to other hosts", b.name, backends.ErrUnsupported)
	}
	return nil, b.Unmap(ctx, mappingFor(b, r))
}

// takeListed takes away the entries of the gateway's table that are meant. The
// table is read first: entries move while some go.
func (u *unmapRequest) unmapListed(ctx context.Context, b availableBackend, l backends.Lister, r backends.Request) (gone []backends.Mapping, err error) {
	var meant []backends.Mapping
	var failure, others error
	entries := 0
	for e, err := range l.List(ctx) {
		if err != nil {
			failure = err
			break
		}
		entries++
		switch m := e.Mapping; {
		case !u.matches(m, r):
		case u.foreign || b.leadsHere(m):
			meant = append(meant, m)
		case u.to.IsValid() && m.Internal.Addr() == u.to:
			others = fmt.Errorf("%s: %s leads to another host\n  → with --foreign it is taken away all the same",
				b.name, mappingText([]backends.Mapping{m}))
		}
	}
	if entries == 0 && mayHideEntries(failure) && u.hostKnown(b) {
		m := likelyMapping(b, r)
		if failure != nil {
			u.remark = fmt.Sprintf("The gateway does not tell its table: only external port %d was looked at.\n", m.External.Port())
		}
		return nil, b.Unmap(ctx, m)
	}
	errs := []error{failure, others}
	for _, m := range meant {
		if err := b.Unmap(ctx, m); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", mappingText([]backends.Mapping{m}), err))
			continue
		}
		gone = append(gone, m)
	}
	return gone, errors.Join(errs...)
}

// means reports whether an entry of the table is what the request names, but for
// the host that is not named.
func (u *unmapRequest) matches(m backends.Mapping, r backends.Request) bool {
	to, from := r.Internal.Addr(), r.Remote.Addr()
	return m.Protocol == r.Protocol && m.Internal.Port() == r.Internal.Port() &&
		(r.External.Port() == 0 || m.External.Port() == r.External.Port()) &&
		(!to.IsValid() || m.Internal.Addr() == to) &&
		(!from.IsValid() || m.Remote.Addr() == from)
}

// mayHide reports whether a table that told nothing may have something all the
// same: some devices say that it is empty instead of that they do not list it.
func mayHideEntries(failure error) bool {
	return failure == nil || errors.Is(failure, backends.ErrUnsupported) ||
		errors.Is(failure, backends.ErrNotAuthorized) || errors.Is(failure, backends.ErrMalformed)
}

// hostKnown reports whether it is clear which host is meant, and that it may be.
func (u *unmapRequest) hostKnown(b availableBackend) bool {
	if u.foreign {
		return u.to.IsValid()
	}
	return !u.to.IsValid() || u.to == b.localAddr
}

// guess is a mapping as it most likely is. The backend leaves alone what leads
// elsewhere.
func likelyMapping(b availableBackend, r backends.Request) backends.Mapping {
	m := mappingFor(b, r)
	m.Internal = r.Internal
	if !m.Internal.Addr().IsValid() {
		m.Internal = netip.AddrPortFrom(b.localAddr, r.Internal.Port())
	}
	m.External = netip.AddrPortFrom(netip.Addr{}, cmp.Or(r.External.Port(), r.Internal.Port()))
	return m
}

// takePinhole closes a pinhole, whose number only its maker knows: asked for
// again it is the same one (WANIPv6FirewallControl:1, AddPinhole), and ends soon
// should it not be closed.
func unmapPinhole(ctx context.Context, b availableBackend, r backends.Request) error {
	r.Lifetime = time.Minute
	m, err := b.Map(ctx, r)
	if err != nil {
		return err
	}
	return b.Unmap(ctx, m)
}
