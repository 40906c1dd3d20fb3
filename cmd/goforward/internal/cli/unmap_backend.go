package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
)

// checkBackend returns an inapplicableError if a backend cannot have created the requested
// mapping.
func (u *unmapRequest) checkBackend(b availableBackend, r backends.Request) error {
	err := b.Supports(r)
	switch {
	case err != nil || isLister(b.Backend):
	case u.anyHost():
		err = fmt.Errorf("%s: %w: it cannot list mappings to other hosts", b.name, backends.ErrUnsupported)
	case b.name == natpmp.Name && mappingFor(b, r).Internal.Addr().IsValid():
		err = fmt.Errorf("%s: %w: it deletes only mappings to this host", b.name, backends.ErrUnsupported)
	}
	if err != nil {
		return inapplicableError{err}
	}
	return nil
}

// unmapFrom deletes the requested mapping with one backend. Another process created the
// mapping, so only the data in the request is known. unmapFrom returns the deleted entries if
// the backend can list entries.
func (u *unmapRequest) unmapFrom(ctx context.Context, b availableBackend, r backends.Request) ([]backends.Mapping, error) {
	if err := u.checkBackend(b, r); err != nil {
		return nil, err
	}
	var err error
	switch l, lists := b.Backend.(backends.Lister); {
	case lists && !b.gateway.Addr().Is6():
		return u.unmapListed(ctx, b, l, r)
	case lists:
		err = unmapPinhole(ctx, b, r)
	default:
		err = b.Unmap(ctx, mappingFor(b, r))
	}
	if errors.Is(err, backends.ErrUnsupported) {
		err = inapplicableError{err}
	}
	return nil, err
}

// inapplicableError means that the backend cannot have created the mapping. A device that
// cannot list or delete its entries is no such case.
type inapplicableError struct{ error }

func (e inapplicableError) Unwrap() error { return e.error }

// tableReader is a backend that reads the table of its gateway only once: at the first call of
// List. Later calls yield the same entries and the same error. It is for one goroutine.
type tableReader struct {
	backends.Backend
	lister  backends.Lister
	isRead  bool
	entries []backends.Entry
	err     error // ended the table
}

var _ backends.Lister = (*tableReader)(nil)

// List yields the entries that the first call read.
func (t *tableReader) List(ctx context.Context) iter.Seq2[backends.Entry, error] {
	return func(yield func(backends.Entry, error) bool) {
		if !t.isRead {
			t.isRead = true
			for e, err := range t.lister.List(ctx) {
				if err != nil {
					t.err = err
					break
				}
				t.entries = append(t.entries, e)
			}
		}
		for _, e := range t.entries {
			if !yield(e, nil) {
				return
			}
		}
		if t.err != nil {
			yield(backends.Entry{}, t.err)
		}
	}
}

// withTableReaders returns the result with backends that read each table once.
func withTableReaders(result *probeResult) *probeResult {
	out := *result
	out.available = slices.Clone(result.available)
	for i, b := range out.available {
		if l, ok := b.Backend.(backends.Lister); ok {
			out.available[i].Backend = &tableReader{Backend: b.Backend, lister: l}
		}
	}
	return &out
}

// selection are the entries of a table that a request selects.
type selection struct {
	matching []backends.Mapping
	errs     []error // entries that must not be deleted, and why
	entries  int     // number of entries in the table
	seen     bool    // the table has an entry for the port of the likely mapping
	listErr  error   // ended the table
}

// selectEntries reads the table and returns the entries that match the request. It adds to the
// remark the mappings to this host that do not match.
func (u *unmapRequest) selectEntries(ctx context.Context, b availableBackend, l backends.Lister, r backends.Request) (s selection) {
	likely := likelyMapping(b, r)
	for e, err := range l.List(ctx) {
		if err != nil {
			s.listErr = err
			break
		}
		m := e.Mapping
		s.entries++
		s.seen = s.seen || m.Protocol == likely.Protocol && m.External.Port() == likely.External.Port() && m.Remote.Addr() == likely.Remote.Addr()
		switch text := mappingText([]backends.Mapping{m}); {
		case !u.matches(m, r):
			if b.forwardsHere(m) && u.matches(m, backends.Request{Protocol: r.Protocol, Internal: r.Internal}) {
				u.remark += text + " stays: it has another external port or peer.\n"
			}
		case u.anyHost() || b.forwardsHere(m) || u.foreign && m.Internal.Addr().IsValid():
			s.matching = append(s.matching, m)
		case u.all: // unmapAll handles the entries without a host
		case !m.Internal.Addr().IsValid():
			s.errs = append(s.errs, fmt.Errorf("%s: %s: the gateway does not report the address of the host\n  → goforward unmap %d:%d --foreign, without --to, deletes it",
				b.name, text, m.External.Port(), m.Internal.Port()))
		case u.to.IsValid():
			s.errs = append(s.errs, fmt.Errorf("%s: %s forwards to another host\n  → use --foreign to delete it", b.name, text))
		}
	}
	return s
}

// unmapListed deletes the matching entries of the gateway's table. It reads the whole table
// first, because entries may change their index when others are deleted. The table may be
// incomplete, even if it ends without an error. Therefore, unmapListed also deletes the most
// likely mapping if the table has no entry for its port.
func (u *unmapRequest) unmapListed(ctx context.Context, b availableBackend, l backends.Lister, r backends.Request) (deleted []backends.Mapping, err error) {
	s := u.selectEntries(ctx, b, l, r)
	errs := s.errs
	for _, m := range s.matching {
		if err := b.Unmap(ctx, m); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", mappingText([]backends.Mapping{m}), err))
			continue
		}
		deleted = append(deleted, m)
	}
	if u.all { // unmapAll reports the error of the table
		return deleted, errors.Join(errs...)
	}
	if !u.hostKnown(b) || ctx.Err() != nil {
		return deleted, errors.Join(append(errs, s.listErr)...)
	}
	likely := likelyMapping(b, r)
	if !s.seen {
		err := b.Unmap(ctx, likely)
		if s.listErr == nil && s.entries > 0 && (errors.Is(err, backends.ErrUnsupported) || errors.Is(err, backends.ErrNoReply)) {
			err = nil // the device has no usable request for a single entry: the table counts
		}
		if err != nil {
			if s.listErr != nil && s.listErr.Error() != err.Error() {
				errs = append(errs, s.listErr)
			}
			errs = append(errs, err)
		}
	}
	if s.listErr != nil {
		what := "its mappings: "
		if s.entries > 0 {
			what = "all its mappings: besides the listed ones, "
		}
		u.remark += fmt.Sprintf("The gateway does not list %sonly external port %d was checked.\n", what, likely.External.Port())
	}
	return deleted, errors.Join(errs...)
}

// matches reports whether an entry matches the request. A request without a host matches every
// host, and an entry without a host matches every request. An entry with external port 0, which
// no request can delete, never matches.
func (u *unmapRequest) matches(m backends.Mapping, r backends.Request) bool {
	to, from, host := r.Internal.Addr(), r.Remote.Addr(), m.Internal.Addr()
	return m.Protocol == r.Protocol && m.Internal.Port() == r.Internal.Port() && m.External.Port() != 0 &&
		(r.External.Port() == 0 || m.External.Port() == r.External.Port()) &&
		(!to.IsValid() || !host.IsValid() || host == to) &&
		(!from.IsValid() || m.Remote.Addr() == from)
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
	if !r.Internal.Addr().IsValid() { // the device may be reached over IPv4
		r.Internal = netip.AddrPortFrom(b.localAddr, r.Internal.Port())
	}
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
