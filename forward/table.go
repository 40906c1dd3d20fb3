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

// Entry is a mapping as Mappings lists it.
type Entry struct {
	Mapping backends.Mapping
	// Enabled is whether the gateway forwards it now, as far as is known.
	Enabled bool
	// Ours is whether this Forwarder holds it.
	Ours bool
}

// Mappings lists what the gateway forwards, for whomever, where it tells: by
// UPnP, also where mappings go by another protocol. What this Forwarder holds is
// marked; what of that is not in the table comes after it, and is all there is
// where the gateway tells nothing: two entries for Both, none for what is not
// granted just now. It is a snapshot, in the table's order. It fails where no
// gateway answers and nothing is held, and returns what it has got of the table
// beside the error that ended it.
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

// granted is what this Forwarder holds, in the order of enabling.
func (f *Forwarder) ownGrants() []backends.Mapping {
	var out []backends.Mapping
	for _, m := range f.matching(nil) {
		for _, granted := range m.Grants() {
			if indexOf(out, granted) < 0 { // mappings may share it
				out = append(out, granted)
			}
		}
	}
	return out
}

// find returns the index of the mapping that a row of the table is, whatever
// protocol made it, or -1.
func indexOf(ms []backends.Mapping, row backends.Mapping) int {
	return slices.IndexFunc(ms, func(m backends.Mapping) bool {
		return m.Protocol == row.Protocol && m.External.Port() == row.External.Port() && m.Internal == row.Internal &&
			(m.Remote.Addr().Unmap() == row.Remote.Addr().Unmap() || !row.Remote.IsValid()) // some tables leave the peer out
	})
}

// MappingAt returns the entry of Mappings at an index, from 0. Past the end it
// fails with ErrNoMapping. A program that wants all of them asks for Mappings:
// rows move when the table changes.
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
	entries, err := f.Mappings(ctx) // it may be one of ours that the table does not have
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

// lister returns a backend whose gateway tells its table. Without one the error
// wraps backends.ErrUnsupported.
func (f *Forwarder) lister(ctx context.Context) (backends.Lister, backends.Backend, error) {
	r, done, err := f.selectGateway(ctx, f.family())
	if err != nil {
		return nil, nil, err
	}
	defer done()
	for _, b := range r.client.Backends() {
		l, is := b.Backend.(backends.Lister)
		if !is {
			continue
		}
		if err := r.client.EnsureProbed(ctx, b, f.config.DiscoveryTimeout); err == nil {
			return l, b.Backend, nil
		} else if ctx.Err() != nil && !gateway.IsTimeout(ctx) {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("forward: %w: the gateway does not list its mappings", backends.ErrUnsupported)
}

// foreignMatching returns the rows of the table that match all selectors and are
// not ours, and the backend to delete them with. Rows move while some go, so the
// table is read first.
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
		if selectsAll(sel, foreignSubject(e.Mapping)) {
			out = append(out, e.Mapping)
		}
	}
	own := f.ownGrants() // also what was enabled meanwhile
	return slices.DeleteFunc(out, func(row backends.Mapping) bool { return indexOf(own, row) >= 0 }), b, err
}

// subjectOf is a row of the table as selectors see it.
func foreignSubject(m backends.Mapping) *subject {
	return &subject{foreign: true, granted: []backends.Mapping{m}, spec: &gateway.Spec{
		Protocols: []backends.Protocol{m.Protocol}, Internal: netip.AddrPortFrom(m.Internal.Addr().Unmap(), m.Internal.Port()),
		Remote: m.Remote, Description: m.Description,
	}}
}

// disableForeign takes away the last row that matches.
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

// disableAllForeign takes away all rows that match.
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

func selectsAll(sel []Selector, s *subject) bool {
	return !slices.ContainsFunc(sel, func(one Selector) bool { return !one.selects(s) })
}

// checkSelectors refuses what selects by mistake: the whole table of a gateway
// is not ours.
func checkSelectors(sel []Selector) error {
	switch {
	case slices.Contains(sel, nil):
		return invalid("nil selector")
	case slices.Contains(sel, Foreign()) && !slices.ContainsFunc(sel, func(s Selector) bool { return s != Foreign() }):
		return invalid("Foreign alone: say which, or Everything")
	}
	return nil
}

// latest returns the last enabled of those that match, or ErrNoMapping.
func (f *Forwarder) lastMatching(sel []Selector, skip func(*Mapping) bool) (*Mapping, error) {
	if err := checkSelectors(sel); err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(f.matching(sel), func(m *Mapping) bool {
		return skip(m) || len(sel) == 0 && m.noDefault
	})
	if len(found) == 0 {
		return nil, fmt.Errorf("forward: %w", ErrNoMapping)
	}
	return found[len(found)-1], nil
}

// Disable takes away the last enabled mapping of this Forwarder that is still
// held and matches all selectors, or fails with ErrNoMapping. Without selectors
// those of a [Listener] or [PacketConn], and of [NoDefault], are passed over. With Foreign, where there
// is none, it is the last of the gateway's table that matches. The error says where
// the gateway did not take it away, as that of [Mapping.Close] does.
func (f *Forwarder) Disable(ctx context.Context, sel ...Selector) error {
	bounded, end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	m, err := f.lastMatching(sel, (*Mapping).isExpiredOnce)
	switch {
	case errors.Is(err, ErrNoMapping) && slices.Contains(sel, Foreign()):
		return f.disableForeign(bounded, sel)
	case err != nil:
		return err
	}
	return m.Shutdown(ctx)
}

// DisableAll takes away the mappings of this Forwarder that match all
// selectors, and returns how many it took away. With Foreign, those of the
// gateway's table go as well; backends.ErrUnsupported says that it lists none.
// None of the errors, which are joined, stops the rest.
func (f *Forwarder) DisableAll(ctx context.Context, sel ...Selector) (int, error) {
	bounded, end, err := f.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := checkSelectors(sel); err != nil {
		return 0, err
	}
	n, err := f.closeAll(ctx, slices.DeleteFunc(f.matching(sel), (*Mapping).isExpiredOnce))
	if !slices.Contains(sel, Foreign()) {
		return n, err
	}
	more, foreignErr := f.disableAllForeign(bounded, sel)
	return n + more, errors.Join(err, foreignErr)
}

// Refresh asks again for the last enabled mapping that matches all selectors,
// in place, even where it has expired. Without one it fails with ErrNoMapping;
// one that is [NoDefault] counts only where selectors match it.
func (f *Forwarder) Refresh(ctx context.Context, sel ...Selector) error {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	m, err := f.lastMatching(sel, func(*Mapping) bool { return false })
	if err != nil {
		return err
	}
	return m.Refresh(ctx)
}

// Run enables what the options say, waits until the context ends, deletes the mapping
// and returns nil, or says what could not be done. It also returns when the mapping is
// closed, as by Disable: nil, or ErrClosed if the Forwarder was closed.
func (f *Forwarder) Run(ctx context.Context, opts ...Option) error {
	m, err := f.enable(ctx, opts)
	if err != nil {
		if m != nil && errors.Is(err, context.Canceled) {
			return m.Shutdown(context.WithoutCancel(ctx))
		}
		return err
	}
	for !m.status().Closed && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-m.Changed():
		}
	}
	if f.ctx.Err() != nil {
		return errClosed("forwarder")
	}
	return m.Shutdown(context.WithoutCancel(ctx))
}
