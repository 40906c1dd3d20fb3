package forward

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// matching returns the held mappings that match all selectors, in the order of
// enabling.
func (f *Forwarder) matching(sel []Selector) []*Mapping {
	f.mu.Lock()
	held := slices.Clone(f.held)
	f.mu.Unlock()
	return slices.DeleteFunc(held, func(m *Mapping) bool { return !selectsAll(sel, m.subject()) })
}

func selectsAll(sel []Selector, s *subject) bool {
	return !slices.ContainsFunc(sel, func(one Selector) bool { return !one.selects(s) })
}

// subject is the mapping as selectors see it.
func (m *Mapping) subject() *subject {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.wish
	return &subject{wish: &w, granted: m.state()}
}

// checkSelectors refuses what selects by mistake: the whole table of a gateway
// is not ours.
func checkSelectors(sel []Selector) error {
	switch {
	case slices.Contains(sel, nil):
		return fmt.Errorf("forward: %w: nil selector", backends.ErrInvalid)
	case slices.Contains(sel, Foreign()) && !slices.ContainsFunc(sel, func(s Selector) bool { return s != Foreign() }):
		return fmt.Errorf("forward: %w: Foreign alone: say which, or Everything", backends.ErrInvalid)
	}
	return nil
}

// latest returns the last enabled of those that match, or ErrNoMapping.
func (f *Forwarder) latest(sel []Selector) (*Mapping, error) {
	if err := checkSelectors(sel); err != nil {
		return nil, err
	}
	found := f.matching(sel)
	if len(sel) == 0 {
		found = slices.DeleteFunc(found, (*Mapping).aside)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("forward: %w", ErrNoMapping)
	}
	return found[len(found)-1], nil
}

// Disable takes away the last enabled mapping of this Forwarder that is still
// held and matches all selectors, or fails with ErrNoMapping. Without selectors
// those of a [Listener] or [PacketConn], and of [Aside], are passed over. With Foreign, where there
// is none, it is the last of the gateway's table that matches. The error says where
// the gateway did not take it away, as that of [Mapping.Close] does.
func (f *Forwarder) Disable(ctx context.Context, sel ...Selector) error {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	m, err := f.latest(sel)
	switch {
	case errors.Is(err, ErrNoMapping) && slices.Contains(sel, Foreign()):
		return f.disableForeign(ctx, sel)
	case err != nil:
		return err
	}
	return m.close(ctx)
}

// DisableAll takes away the mappings of this Forwarder that match all
// selectors, and returns how many it took away. With Foreign, those of the
// gateway's table go as well; backends.ErrUnsupported says that it lists none.
// None of the errors, which are joined, stops the rest.
func (f *Forwarder) DisableAll(ctx context.Context, sel ...Selector) (int, error) {
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	if err := checkSelectors(sel); err != nil {
		return 0, err
	}
	n, err := closeAll(ctx, f.matching(sel))
	if !slices.Contains(sel, Foreign()) {
		return n, err
	}
	more, foreignErr := f.disableAllForeign(ctx, sel)
	return n + more, errors.Join(err, foreignErr)
}

// closeAll closes mappings, several at once: those of one gateway queue there.
func closeAll(ctx context.Context, ms []*Mapping) (closed int, err error) {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
		work = make(chan *Mapping)
	)
	for range min(maxWorkers, len(ms)) {
		wg.Go(func() {
			for m := range work {
				err := m.close(ctx)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					closed++
				}
				mu.Unlock()
			}
		})
	}
	for _, m := range ms {
		work <- m
	}
	close(work)
	wg.Wait()
	return closed, errors.Join(errs...)
}

// Refresh asks again for the last enabled mapping that matches all selectors,
// in place, even where it has expired. Without one it fails with ErrNoMapping;
// one that is [Aside] counts only where selectors match it.
func (f *Forwarder) Refresh(ctx context.Context, sel ...Selector) error {
	m, err := f.latest(sel)
	if err != nil {
		return err
	}
	return m.Refresh(ctx)
}

// Run enables what the options say, waits until the context ends, takes the
// mapping away and returns nil, or says what could not be done.
func (f *Forwarder) Run(ctx context.Context, opts ...Option) error {
	m, err := f.Enable(ctx, opts...)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-f.ctx.Done():
		return fmt.Errorf("forward: %w", ErrClosed)
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), closeTime, &timeoutError{closeTime})
	defer cancel()
	return m.close(ctx)
}

// closeTime bounds Close.
const closeTime = 2 * time.Second

// Close takes all mappings away, except those of Once, and stops. It takes two
// seconds at most: what is not deleted by then is left to its lifetime; Shutdown
// tells. A second call does nothing. It returns nil.
func (f *Forwarder) Close() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), closeTime, &timeoutError{closeTime})
	defer cancel()
	if err := f.Shutdown(ctx); err != nil {
		f.log.Warn("closed, but not all mappings are deleted", "err", err)
	}
	return nil
}

// Shutdown is Close within a context, and reports what could not be deleted.
// Calls under way fail with ErrClosed.
func (f *Forwarder) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	first := !f.closed
	f.closed = true
	f.mu.Unlock()
	if !first {
		select {
		case <-f.ended:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	defer close(f.ended)
	f.cancel(ErrClosed)
	f.calls.Wait() // they obey their contexts, which have ended
	held := f.matching(nil)
	for _, m := range held {
		if m.once() {
			m.abandon()
		}
	}
	var settled sync.WaitGroup
	var unsettled error
	owed := f.debts.due(time.Time{}) // before others come
	settled.Go(func() { unsettled = f.debts.pay(ctx, owed) })
	_, err := closeAll(ctx, slices.DeleteFunc(held, (*Mapping).once))
	settled.Wait()
	f.closings.wait(ctx)
	f.mu.Lock()
	ways := append(slices.Collect(maps.Values(f.ways)), f.retired...)
	f.mu.Unlock()
	for _, w := range ways { // not under the lock: their watchers take it
		_ = w.close()
	}
	err = errors.Join(err, unsettled, f.await(ctx))
	f.ledger.close()
	return err
}

// await waits for the background work, of which only OnEvent can last. An ended
// context leaves it a moment.
func (f *Forwarder) await(ctx context.Context) error {
	done := make(chan struct{})
	go func() { f.work.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	const moment = 100 * time.Millisecond
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return fmt.Errorf("forward: OnEvent has not returned: %w", context.Cause(ctx))
	}
}
