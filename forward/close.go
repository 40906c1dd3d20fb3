package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/internal/gateway"
)

const (
	// closeTimeout bounds Close if the gateway does not answer.
	closeTimeout = 2 * time.Second
	// longestClose bounds Close while the gateway keeps answering.
	longestClose = 15 * time.Second
)

// closeContext bounds the wait of a Close. Without a deadline of the caller's it ends
// closeTimeout after the gateway last answered, after longestClose at the latest.
func closeContext(ctx context.Context, answered func() time.Time) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	begun := time.Now()
	var (
		mu    sync.Mutex
		timer *time.Timer
	)
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(closeTimeout, func() {
		last := answered()
		if last.Before(begun) {
			last = begun
		}
		wait := min(time.Until(last.Add(closeTimeout)), time.Until(begun.Add(longestClose)))
		if wait <= 0 {
			cancel(&gateway.TimeoutError{After: time.Since(begun).Round(time.Millisecond)})
			return
		}
		mu.Lock()
		defer mu.Unlock()
		timer.Reset(wait)
	})
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// Close deletes the mapping from the gateway. It takes two seconds at most, and up to
// fifteen while the gateway keeps answering. Its error names what remains on the gateway
// until its lifetime ends. A gateway that did not answer is asked again until the
// Forwarder is closed, and then once more. A second call waits for the first and returns
// the same error.
func (m *Mapping) Close() error { return m.close(context.Background()) }

// Shutdown is Close within a context. One without a deadline is bounded as Close is.
func (m *Mapping) Shutdown(ctx context.Context) error { return m.close(ctx) }

// ending is a Close in flight, and what came of it.
type ending struct {
	client *gateway.Client // of the gateway; nil: there is none
	done   chan struct{}
	err    error // valid after done
}

// wait returns what a Close returned.
func (e *ending) wait() error {
	<-e.done
	return e.err
}

func (m *Mapping) close(ctx context.Context) error {
	first := false
	m.forwarder.loop.Do(func() { first = m.forwarder.release(m, false) })
	e := m.ending.Load()
	if !first {
		return e.wait()
	}
	m.finish(ctx)
	m.forwarder.loop.Post(m.forwarder.tidy)
	return e.err
}

func (e *ending) answered() (last time.Time) {
	if e.client != nil {
		last = e.client.Answered()
	}
	return last
}

// finish waits until what the mapping had is deleted.
func (m *Mapping) finish(ctx context.Context) {
	e, c := m.ending.Load(), m.handle.Closing()
	ctx, cancel := closeContext(ctx, e.answered)
	defer cancel()
	select {
	case <-c.Done:
	default:
		select {
		case <-c.Done:
		case <-ctx.Done():
			for _, p := range m.status().Wish.Protocols {
				e.err = errors.Join(e.err, &gateway.RemainsError{Protocol: p, Port: m.handle.Port, Err: context.Cause(ctx)})
			}
		}
	}
	if e.err == nil {
		e.err = c.Err
	}
	if e.err != nil {
		e.err = fmt.Errorf("forward: %w", e.err)
	}
	close(e.done)
}

// release ends a mapping, once: what it has is deleted, or left to its lifetime. It runs
// on the loop.
func (f *Forwarder) release(m *Mapping, leave bool) (first bool) {
	e := &ending{client: m.handle.Client(), done: make(chan struct{})}
	if first = m.ending.CompareAndSwap(nil, e); first {
		f.held = slices.DeleteFunc(f.held, func(other *Mapping) bool { return other == m })
		f.dispatcher.mappings.Add(-1)
		m.handle.BeginClose(leave)
		f.store.nudge()
	}
	return first
}

// closeAll closes mappings, all at once: those of one gateway queue there.
func (f *Forwarder) closeAll(ctx context.Context, ms []*Mapping) (closed int, err error) {
	var (
		errs = make([]error, len(ms))
		wg   sync.WaitGroup
		next = make(chan int)
	)
	for range min(gateway.MaxCalls, len(ms)) {
		wg.Go(func() {
			for i := range next {
				errs[i] = ms[i].close(ctx)
			}
		})
	}
	for i := range ms {
		next <- i
	}
	close(next)
	wg.Wait()
	for _, err := range errs {
		if err == nil {
			closed++
		}
	}
	return closed, errors.Join(errs...)
}

// Close deletes all mappings, except those of Once, and stops. It takes two seconds at
// most, and up to fifteen while gateways keep answering. Its error names what remains on
// a gateway until its lifetime ends. A second call waits for the first and returns the
// same error. OnEvent and the Logger's handler may call it.
func (f *Forwarder) Close() error { return f.Shutdown(context.Background()) }

// Shutdown is Close within a context. One without a deadline is bounded as Close is.
// Calls in flight fail with ErrClosed.
func (f *Forwarder) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	e, started := f.ending, f.started
	first := e == nil
	if first {
		e = &ending{done: make(chan struct{})}
		f.ending = e
	}
	f.mu.Unlock()
	if !first {
		return e.wait()
	}
	defer close(e.done)
	f.cancel(ErrClosed)
	if started {
		e.err = f.shutdown(ctx)
	}
	return e.err
}

func (f *Forwarder) shutdown(ctx context.Context) error {
	f.calls.Wait() // they obey their contexts, which have ended
	var (
		held   []*Mapping
		routes []*route
	)
	f.loop.Do(func() {
		held, routes = slices.Clone(f.held), f.known
		f.known, f.current = nil, [2]*route{}
		for _, m := range held {
			f.release(m, m.status().Wish.Once)
		}
	})
	ctx, cancel := closeContext(ctx, func() (last time.Time) {
		for _, r := range routes {
			if at := r.client.Answered(); at.After(last) {
				last = at
			}
		}
		return last
	})
	defer cancel()
	errs := make([]error, len(routes))
	var wg sync.WaitGroup
	for i, r := range routes {
		wg.Go(func() { errs[i] = r.client.Close(ctx) })
	}
	wg.Wait()
	for _, m := range held {
		e := m.ending.Load()
		if m.finish(ctx); e.err != nil {
			errs = append(errs, errors.Unwrap(e.err))
		}
	}
	f.work.Wait()
	f.store.close()
	f.loop.Stop()
	<-f.loop.Ended()
	f.dispatcher.close()
	if err := joinOnce(errs); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	return nil
}

// joinOnce joins errors, and leaves out what several say.
func joinOnce(errs []error) error {
	var out []error
	seen := map[string]bool{}
	for _, err := range errs {
		if err == nil {
			continue
		}
		parts := []error{err}
		if joined, is := err.(interface{ Unwrap() []error }); is {
			parts = joined.Unwrap()
		}
		for _, one := range parts {
			key := one.Error()
			if r := (*gateway.RemainsError)(nil); errors.As(one, &r) {
				key = fmt.Sprint(r.Protocol, r.Port)
			}
			if !seen[key] {
				seen[key] = true
				out = append(out, one)
			}
		}
	}
	return errors.Join(out...)
}
