package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/internal/gateway"
)

// maxCloseTime bounds Close while the gateway keeps replying.
const maxCloseTime = 15 * time.Second

// closeContext returns a context that bounds a Close. If ctx has no deadline, the context
// ends CloseTimeout after the gateway's last reply, and after maxCloseTime at the latest. The
// function lastReply returns the time of the last reply.
func (f *Forwarder) closeContext(ctx context.Context, lastReply func() time.Time) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	begun, timeout := time.Now(), f.config.CloseTimeout
	var (
		mu    sync.Mutex
		timer *time.Timer
	)
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(timeout, func() {
		wait := min(time.Until(lastReply().Add(timeout)), time.Until(begun.Add(max(maxCloseTime, timeout))))
		if wait <= 0 {
			cancel(&gateway.TimeoutError{After: time.Since(begun).Round(10 * time.Millisecond)})
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

// Close deletes the mapping from the gateway. It takes at most Config.CloseTimeout, or up to
// 15 seconds while the gateway keeps replying. If the deletion fails, the error names what
// remains on the gateway until its lifetime ends. The deletion is retried until the Forwarder
// is closed, and then once more. A second call waits for the first and returns the same
// error.
func (m *Mapping) Close() error { return m.Shutdown(context.Background()) }

// Shutdown is Close with a context. The context also bounds the wait for another call. If it
// has no deadline, the limits of Close apply.
func (m *Mapping) Shutdown(ctx context.Context) error {
	return m.closing.do(ctx, func() error {
		f := m.forwarder
		until := m.Expires()
		var c *gateway.Closing
		if !f.loop.Do(func() { c = f.release(m, false) }) {
			return nil // another mapping replaced it, and the Forwarder is closed
		}
		defer f.loop.Do(f.closeUnusedRoutes)
		return m.awaitDeletion(ctx, c, until)
	})
}

// Leave closes the mapping without deleting it from the gateway. The mapping is no longer
// renewed and remains until its lifetime ends, or forever if it has no end. A mapping whose
// first request is in flight is deleted. Leave does not wait. After Close it has no effect.
func (m *Mapping) Leave() {
	ended, cancel := context.WithCancel(context.Background())
	cancel() // do not wait for a Close in progress
	_ = m.closing.do(ended, func() error {
		m.forwarder.loop.Do(func() { m.forwarder.release(m, true) })
		m.forwarder.loop.Post(m.forwarder.closeUnusedRoutes)
		return nil
	})
}

// once runs a function once and keeps its error.
type once struct {
	done atomic.Pointer[chan struct{}] // closed when the function has returned; nil: it was not called
	err  error
}

// do calls f if it is the first call. Otherwise it waits for the first call until ctx ends.
// It returns the error of f.
func (o *once) do(ctx context.Context, f func() error) error {
	done := make(chan struct{})
	if o.done.CompareAndSwap(nil, &done) {
		o.err = f()
		close(done)
	}
	select {
	case <-*o.done.Load():
		return o.err
	case <-ctx.Done():
	}
	select {
	case <-*o.done.Load(): // even if ctx has ended already
		return o.err
	default:
		return context.Cause(ctx)
	}
}

// awaitDeletion waits until the mapping is deleted, or until the time limit of Close. It
// returns an error for what remains on the gateway until the given time.
func (m *Mapping) awaitDeletion(ctx context.Context, c *gateway.Closing, until time.Time) (err error) {
	ctx, cancel := m.forwarder.closeContext(ctx, m.handle.LastReply)
	defer cancel()
	select {
	case <-c.Done:
		err = c.Err
	case <-ctx.Done():
		for _, member := range m.status().Spec.Members() {
			err = errors.Join(err, &gateway.RemainsError{Protocol: member.Protocol, Port: m.handle.Port() + member.Offset, Until: until, Err: context.Cause(ctx)})
		}
	}
	if err != nil {
		err = fmt.Errorf("forward: %w", err)
	}
	return err
}

// release removes a mapping from the open mappings and begins to close it. The mapping is
// deleted, or remains on the gateway if keepOnGateway is true. It runs on the loop.
func (f *Forwarder) release(m *Mapping, keepOnGateway bool) *gateway.Closing {
	if i := slices.Index(f.held, m); i >= 0 {
		f.held = slices.Delete(f.held, i, i+1)
		f.dispatcher.openMappings.Add(-1)
		f.store.requestWrite()
	}
	return m.handle.BeginClose(keepOnGateway)
}

// closeAll closes mappings, several at a time. It returns how many were deleted.
func (f *Forwarder) closeAll(ctx context.Context, ms []*Mapping) (closed int, err error) {
	var wg sync.WaitGroup
	errs, running := make([]error, len(ms)), make(chan struct{}, gateway.MaxCalls)
	for i, m := range ms {
		running <- struct{}{}
		wg.Go(func() {
			errs[i] = m.Shutdown(ctx)
			<-running
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err == nil {
			closed++
		}
	}
	return closed, errors.Join(errs...)
}

// Close deletes all mappings, except those with Once, and stops the Forwarder. It takes at
// most Config.CloseTimeout, or up to 15 seconds while gateways keep replying. If a deletion
// fails, the error names what remains on a gateway until its lifetime ends. The error does
// not include mappings that remain at a previous gateway after the default route changed;
// they are logged at that time. A second call waits for the first and returns the same error.
// OnEvent and the Logger's handler may call Close.
func (f *Forwarder) Close() error { return f.Shutdown(context.Background()) }

// Shutdown is Close with a context. The context also bounds the wait for another call. If it
// has no deadline, the limits of Close apply. Calls in flight fail with ErrClosed.
func (f *Forwarder) Shutdown(ctx context.Context) error {
	return f.closing.do(ctx, func() error {
		f.cancel(ErrClosed)
		f.calls.Close(ErrClosed)
		if !f.started.Load() {
			return nil
		}
		return f.shutdown(ctx)
	})
}

func (f *Forwarder) shutdown(ctx context.Context) error {
	var (
		held   []*Mapping
		routes []*route
	)
	f.loop.Do(func() {
		held, routes = slices.Clone(f.held), f.routes
		f.routes, f.current = nil, [2]*route{}
		for _, m := range held {
			f.release(m, m.status().Spec.Once)
		}
	})
	ctx, cancel := f.closeContext(ctx, func() (latest time.Time) {
		for _, r := range routes {
			if at := r.client.LastReply(); at.After(latest) {
				latest = at
			}
		}
		return latest
	})
	defer cancel()
	errs := make([]error, len(routes))
	var wg sync.WaitGroup
	for i, r := range routes {
		wg.Go(func() { errs[i] = f.closeRoute(ctx, r) })
	}
	wg.Wait()
	for _, m := range held {
		_ = m.Shutdown(ctx) // the error of its route includes what remains
	}
	f.work.Wait()
	f.store.close()
	f.loop.Stop()
	f.dispatcher.close()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	return nil
}
