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

// unmapFrom deletes the requested mapping with one backend. Another process created the
// mapping, so only the data in the request is known. unmapFrom returns the deleted entries if
// the backend can list entries.
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
		return nil, fmt.Errorf("%s: %w: it cannot list mappings to other hosts", b.name, backends.ErrUnsupported)
	}
	return nil, b.Unmap(ctx, mappingFor(b, r))
}

// unmapListed deletes the matching entries of the gateway's table. It reads the whole table
// first, because entries may change their index when others are deleted.
func (u *unmapRequest) unmapListed(ctx context.Context, b availableBackend, l backends.Lister, r backends.Request) (deleted []backends.Mapping, err error) {
	var matching []backends.Mapping
	var listErr, foreignErr error
	entries := 0
	for e, err := range l.List(ctx) {
		if err != nil {
			listErr = err
			break
		}
		entries++
		switch m := e.Mapping; {
		case !u.matches(m, r):
		case u.foreign || b.forwardsHere(m):
			matching = append(matching, m)
		case u.to.IsValid() && m.Internal.Addr() == u.to:
			foreignErr = fmt.Errorf("%s: %s forwards to another host\n  → use --foreign to delete it",
				b.name, mappingText([]backends.Mapping{m}))
		}
	}
	if entries == 0 && mayHideEntries(listErr) && u.hostKnown(b) {
		m := likelyMapping(b, r)
		if listErr != nil {
			u.remark = fmt.Sprintf("The gateway does not list its mappings: only external port %d was checked.\n", m.External.Port())
		}
		return nil, b.Unmap(ctx, m)
	}
	errs := []error{listErr, foreignErr}
	for _, m := range matching {
		if err := b.Unmap(ctx, m); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", mappingText([]backends.Mapping{m}), err))
			continue
		}
		deleted = append(deleted, m)
	}
	return deleted, errors.Join(errs...)
}

// matches reports whether an entry matches the request. A request without a host matches every
// host.
func (u *unmapRequest) matches(m backends.Mapping, r backends.Request) bool {
	to, from := r.Internal.Addr(), r.Remote.Addr()
	return m.Protocol == r.Protocol && m.Internal.Port() == r.Internal.Port() &&
		(r.External.Port() == 0 || m.External.Port() == r.External.Port()) &&
		(!to.IsValid() || m.Internal.Addr() == to) &&
		(!from.IsValid() || m.Remote.Addr() == from)
}

// mayHideEntries reports whether there may be entries although the gateway listed none: some
// devices return an empty table instead of an error if they cannot list.
func mayHideEntries(listErr error) bool {
	return listErr == nil || errors.Is(listErr, backends.ErrUnsupported) ||
		errors.Is(listErr, backends.ErrNotAuthorized) || errors.Is(listErr, backends.ErrMalformed)
}

// hostKnown reports whether the request selects one host to which unmap may delete mappings.
func (u *unmapRequest) hostKnown(b availableBackend) bool {
	if u.foreign {
		return u.to.IsValid()
	}
	return !u.to.IsValid() || u.to == b.localAddr
}

// likelyMapping returns the mapping that most likely exists. The backend does not delete
// mappings that forward to another host.
func likelyMapping(b availableBackend, r backends.Request) backends.Mapping {
	m := mappingFor(b, r)
	m.Internal = r.Internal
	if !m.Internal.Addr().IsValid() {
		m.Internal = netip.AddrPortFrom(b.localAddr, r.Internal.Port())
	}
	m.External = netip.AddrPortFrom(netip.Addr{}, cmp.Or(r.External.Port(), r.Internal.Port()))
	return m
}

// unmapPinhole closes a pinhole. Only its creator has its number, so unmapPinhole requests it
// again: the gateway returns the same pinhole (WANIPv6FirewallControl:1, AddPinhole). If the
// deletion fails, the short lifetime ends it soon.
func unmapPinhole(ctx context.Context, b availableBackend, r backends.Request) error {
	r.Lifetime = time.Minute
	m, err := b.Map(ctx, r)
	if err != nil {
		return err
	}
	return b.Unmap(ctx, m)
}

// request returns the request that map would have sent.
func (s *spec) request(p backends.Protocol) backends.Request {
	return backends.Request{
		Protocol: p,
		Internal: netip.AddrPortFrom(s.to, s.internal),
		External: netip.AddrPortFrom(netip.Addr{}, s.external),
		Remote:   s.from,
	}
}

// mappingFor returns the known data of a mapping that another process created. If the request
// names the address of this host, mappingFor removes it: without an address, the mapping leads
// to this host too.
func mappingFor(b availableBackend, r backends.Request) backends.Mapping {
	internal := r.Internal
	if internal.Addr() == b.localAddr {
		internal = netip.AddrPortFrom(netip.Addr{}, internal.Port())
	}
	return backends.Mapping{
		Backend: b.name, Gateway: b.gateway,
		Protocol: r.Protocol, Internal: internal, Remote: r.Remote, Lifetime: backends.Forever,
	}
}
