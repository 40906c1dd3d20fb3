package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Disable deletes one mapping of this Forwarder: the mapping that was enabled last among the
// open mappings that match all selectors. If none matches, Disable fails with ErrNoMapping.
// Without selectors, it skips mappings with [NoDefault] and those of a [Listener] or
// [PacketConn].
//
// With [Foreign], if this Forwarder has no matching mapping, Disable deletes the last
// matching entry of the gateway's table. If the gateway does not delete the mapping, Disable
// returns an error like [Mapping.Close].
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

// DisableAll deletes the mappings of this Forwarder that match all selectors. It returns how
// many were deleted. With [Foreign], it also deletes the matching entries of the gateway's table.
// If the gateway does not list its table, the error wraps backends.ErrUnsupported. An error does
// not stop the other deletions; all errors are joined.
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

// Refresh requests one mapping of this Forwarder again at once, without deleting it first,
// even if it has expired: the mapping that was enabled last among the open mappings that
// match all selectors. If none matches, Refresh fails with ErrNoMapping. Without selectors,
// it skips mappings with [NoDefault].
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

// checkSelectors rejects selectors that are probably a mistake: Foreign alone would select
// the whole table of the gateway.
func checkSelectors(sel []Selector) error {
	switch {
	case slices.Contains(sel, nil):
		return invalid("nil selector")
	case slices.Contains(sel, Foreign()) && !slices.ContainsFunc(sel, func(s Selector) bool { return s != Foreign() }):
		return invalid("Foreign alone: add another selector, or Everything")
	}
	return nil
}

// matching returns the open mappings that match all selectors, in the order in which they
// were enabled.
func (f *Forwarder) matching(sel []Selector) []*Mapping {
	var held []*Mapping
	f.loop.Do(func() { held = slices.Clone(f.held) })
	return slices.DeleteFunc(held, func(m *Mapping) bool { return !selectsAll(sel, m.subject()) })
}

func selectsAll(sel []Selector, s *subject) bool {
	return !slices.ContainsFunc(sel, func(selector Selector) bool { return !selector.selects(s) })
}

// lastMatching returns the mapping that was enabled last among those that match, or
// ErrNoMapping.
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
