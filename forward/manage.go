package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

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
func (f *Forwarder) latest(sel []Selector, skip func(*Mapping) bool) (*Mapping, error) {
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
	m, err := f.latest(sel, (*Mapping).ranOut)
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
	n, err := f.closeAll(ctx, slices.DeleteFunc(f.matching(sel), (*Mapping).ranOut))
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
	m, err := f.latest(sel, func(*Mapping) bool { return false })
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
