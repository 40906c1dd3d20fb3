package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// Entry is an element of the list that Mappings returns.
type Entry struct {
	Mapping backends.Mapping
	// Enabled reports whether the gateway forwards the mapping now, as far as is known.
	Enabled bool
	// Ours reports whether this Forwarder holds the mapping.
	Ours bool
}

// Mappings lists the mappings of the gateway, for all hosts and programs, if the gateway
// lists them. Gateways list mappings through UPnP, even if the Forwarder uses another
// protocol. Mappings that this Forwarder holds are marked with Ours. Those that are missing
// from the gateway's table follow at the end; if the gateway lists nothing, they are the
// whole result. Both has two entries. A mapping that is not granted at the moment has none.
//
// The result is a snapshot, in the order of the table. Mappings fails if no gateway replies
// and the Forwarder holds nothing. If reading the table fails, Mappings returns the entries
// that it has read so far together with the error.
func (f *Forwarder) Mappings(ctx context.Context) ([]Entry, error) {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var entries []Entry
	own := f.ownGrants()
	l, _, err := f.lister(ctx)
	switch {
	case errors.Is(err, backends.ErrUnsupported) || err != nil && len(own) > 0 && (ctx.Err() == nil || gateway.IsTimeout(ctx)):
		err = nil
	case err != nil:
		return nil, err
	default:
		for e, failure := range l.List(ctx) {
			if err = failure; err != nil {
				break
			}
			i := indexOf(own, e.Mapping)
			if i >= 0 {
				own = slices.Delete(own, i, i+1)
			}
			entries = append(entries, Entry{Mapping: e.Mapping, Enabled: e.Enabled, Ours: i >= 0})
		}
	}
	for _, m := range own {
		entries = append(entries, Entry{Mapping: m, Enabled: true, Ours: true})
	}
	return entries, err
}

// ownGrants returns what is granted to this Forwarder, in the order in which the mappings
// were enabled.
func (f *Forwarder) ownGrants() []backends.Mapping {
	var out []backends.Mapping
	for _, m := range f.matching(nil) {
		for _, granted := range m.Grants() {
			if indexOf(out, granted) < 0 { // mappings can share a grant
				out = append(out, granted)
			}
		}
	}
	return out
}

// indexOf returns the index of the mapping that a row of the table describes, or -1. The
// protocol that created the mapping does not matter.
func indexOf(ms []backends.Mapping, row backends.Mapping) int {
	return slices.IndexFunc(ms, func(m backends.Mapping) bool {
		return m.Protocol == row.Protocol && m.External.Port() == row.External.Port() && m.Internal.Port() == row.Internal.Port() &&
			(m.Internal.Addr() == row.Internal.Addr() || !row.Internal.Addr().IsValid()) && // some tables name hosts
			(m.Remote.Addr().Unmap() == row.Remote.Addr().Unmap() || !row.Remote.IsValid()) // some tables omit the peer
	})
}

// MappingAt returns the entry of Mappings with the given index, starting at 0. An index
// beyond the end fails with ErrNoMapping. To read all entries, call Mappings, because indexes
// change when the table changes.
func (f *Forwarder) MappingAt(ctx context.Context, i int) (Entry, error) {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return Entry{}, err
	}
	defer end()
	if i < 0 {
		return Entry{}, fmt.Errorf("forward: %w: index %d", ErrNoMapping, i)
	}
	if l, _, err := f.lister(ctx); err == nil {
		if e, err := entryAt(ctx, l, i); err == nil {
			return Entry{Mapping: e.Mapping, Enabled: e.Enabled, Ours: indexOf(f.ownGrants(), e.Mapping) >= 0}, nil
		}
	}
	entries, err := f.Mappings(ctx) // the entry may be a mapping of this Forwarder that is missing from the table
	switch {
	case i < len(entries):
		return entries[i], nil
	case err != nil:
		return Entry{}, err
	}
	return Entry{}, fmt.Errorf("forward: %w: index %d of %d", ErrNoMapping, i, len(entries))
}

// entryAt returns one row of a gateway's table.
func entryAt(ctx context.Context, l backends.Lister, i int) (backends.Entry, error) {
	if indexer, is := l.(backends.Indexer); is {
		return indexer.EntryAt(ctx, i)
	}
	for e, err := range l.List(ctx) {
		if err != nil || i == 0 {
			return e, err
		}
		i--
	}
	return backends.Entry{}, ErrNoMapping
}

// lister returns a backend whose gateway lists its mappings. If there is none, the error
// wraps backends.ErrUnsupported.
func (f *Forwarder) lister(ctx context.Context) (backends.Lister, backends.Backend, error) {
	r, done, err := f.selectGateway(ctx, f.family())
	if err != nil {
		return nil, nil, err
	}
	defer done()
	err = fmt.Errorf("forward: %w: the gateway does not list its mappings", backends.ErrUnsupported)
	for _, b := range r.client.Backends() {
		l, is := b.Backend.(backends.Lister)
		if !is {
			continue
		}
		probeErr := r.client.EnsureProbed(ctx, b, f.config.DiscoveryTimeout)
		if probeErr == nil {
			return l, b.Backend, nil
		}
		if ctx.Err() != nil && !gateway.IsTimeout(ctx) {
			return nil, nil, probeErr
		}
		err = fmt.Errorf("%w: %w", err, probeErr)
	}
	return nil, nil, err
}

// foreignMatching returns the rows of the table that match all selectors and that this
// Forwarder does not hold. It also returns the backend that deletes them. It reads the whole
// table first, because a deletion changes the indexes.
func (f *Forwarder) foreignMatching(ctx context.Context, sel []Selector) ([]backends.Mapping, backends.Backend, error) {
	l, b, err := f.lister(ctx)
	if err != nil {
		return nil, nil, err
	}
	var out []backends.Mapping
	for e, failure := range l.List(ctx) {
		if err = failure; err != nil {
			break
		}
		if e.Mapping.External.Port() != 0 && selectsAll(sel, foreignSubject(e.Mapping)) { // no request can delete external port 0
			out = append(out, e.Mapping)
		}
	}
	own := f.ownGrants() // includes mappings that were enabled in the meantime
	return slices.DeleteFunc(out, func(row backends.Mapping) bool { return indexOf(own, row) >= 0 }), b, err
}

// foreignSubject returns a row of the table in the form that selectors examine.
func foreignSubject(m backends.Mapping) *subject {
	return &subject{foreign: true, granted: []backends.Mapping{m}, spec: &gateway.Spec{
		Protocols: []backends.Protocol{m.Protocol}, Internal: netip.AddrPortFrom(m.Internal.Addr().Unmap(), m.Internal.Port()),
		Remote: m.Remote, Description: m.Description,
	}}
}

// disableForeign deletes the last row that matches.
func (f *Forwarder) disableForeign(ctx context.Context, sel []Selector) error {
	found, b, err := f.foreignMatching(ctx, sel)
	switch {
	case err != nil:
		return err
	case len(found) == 0:
		return fmt.Errorf("forward: %w", ErrNoMapping)
	}
	return b.Unmap(ctx, found[len(found)-1])
}

// disableAllForeign deletes all rows that match.
func (f *Forwarder) disableAllForeign(ctx context.Context, sel []Selector) (n int, err error) {
	found, b, err := f.foreignMatching(ctx, sel)
	errs := []error{err}
	for _, m := range found {
		if err := b.Unmap(ctx, m); err != nil {
			errs = append(errs, fmt.Errorf("%v port %d: %w", m.Protocol, m.External.Port(), err))
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}
