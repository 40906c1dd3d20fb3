package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// The timing of a probe. The probe of a less preferred backend starts when the preceding
// probe has failed, and after stagger at the latest. If a backend has replied, the more preferred ones
// have until preferenceTime to reply too, or afterReply if that backend uses no search. A
// search takes long and therefore starts after searchDelay. It does not start at once, because
// common gateways process one request at a time: if the search came first, their reply to the
// preceding probe would be late.
const (
	stagger         = 50 * time.Millisecond
	searchDelay     = 25 * time.Millisecond // before a search starts
	preferenceTime  = 250 * time.Millisecond
	afterReply      = 50 * time.Millisecond
	foundDeviceTime = 250 * time.Millisecond // for a device that has responded to the search but not yet to the requests that follow

	// searchTime is how long a probe waits for a search if the gateway refuses everything. It
	// allows for devices that respond within a second.
	searchTime = 1200 * time.Millisecond
	// otherBackendTimeout bounds the probe of a backend if the gateway has replied to another
	// backend. The gateway is then known to be reachable and not slow.
	otherBackendTimeout = time.Second
	// failureAge is how long a backend that failed is not probed again, if other backends are
	// available.
	failureAge = 30 * time.Second
)

// errNotProbed is the state of a backend of which it is unknown whether its gateway replies.
var errNotProbed = errors.New("not probed yet")

// mayBeAvailable returns false if the last probe of the backend failed within failureAge.
// After that, a gateway that was unreachable may be back.
func (b *Backend) mayBeAvailable() bool {
	return b.probeErr == nil || errors.Is(b.probeErr, errNotProbed) || time.Since(b.probedAt) > failureAge
}

// probeRun is a probe in flight, which several callers can share.
type probeRun struct {
	client  *Client
	callers int
	stop    context.CancelCauseFunc
	done    chan struct{}
	err     error // valid once done is closed
}

// Probe returns nil if one of the client's backends is available. Concurrent callers share
// one probe, which ends after the wait of its first caller. The probe continues if a caller
// cancels its context. It stops if the last caller has reached its timeout.
func (c *Client) Probe(ctx context.Context, wait time.Duration) error {
	o := c.owner
	for {
		var p *probeRun
		if !o.loop.Do(func() {
			if len(c.available()) > 0 {
				return
			}
			if o.currentProbe == nil {
				o.startProbe(c, wait)
			}
			p = o.currentProbe
			p.callers++
		}) {
			return ErrEnded
		}
		if p == nil {
			return nil
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			stopped := false
			o.loop.Do(func() {
				p.callers--
				if stopped = p.callers == 0 && IsTimeout(ctx); stopped {
					p.stop(context.Cause(ctx))
					o.currentProbe = nil
				}
			})
			if len(c.Available()) > 0 {
				return nil
			}
			if !stopped {
				return fmt.Errorf("forward: looking for a gateway: %w", context.Cause(ctx))
			}
			<-p.done // the probe was stopped and returns at once
		}
		if p.client == c {
			return p.err
		} // otherwise the probe was of the backends of another client: try again
	}
}

// startProbe starts a probe of a client's backends.
func (o *Owner) startProbe(c *Client, wait time.Duration) {
	ctx, stop := context.WithCancelCause(o.ctx)
	p := &probeRun{client: c, stop: stop, done: make(chan struct{})}
	o.currentProbe = p
	if !o.spawn(func() {
		defer close(p.done)
		defer stop(nil)
		ctx, cancel := bound(ctx, wait)
		defer cancel()
		errs := probe(ctx, c.backends, wait)
		if !o.loop.Do(func() {
			p.err = o.recordProbe(c, errs)
			if o.currentProbe == p {
				o.currentProbe = nil
			}
		}) {
			p.err = ErrEnded
		}
	}) {
		p.err = ErrEnded
		close(p.done)
	}
}

// recordProbe records the results of a probe. It returns nil if a backend is available.
func (o *Owner) recordProbe(c *Client, errs []error) error {
	for i, b := range c.backends {
		b.probeErr, b.probedAt = errs[i], time.Now()
	}
	available := c.available()
	if len(available) == 0 {
		return c.sink.CombineErrors(errs, o.key.Gateway.Addr(), nil)
	}
	o.log().Info("gateway chosen", "gateway", o.key.Gateway.Addr(), "backend", available[0].name)
	return nil
}

// probe probes backends and returns an error for each. It returns as soon as no more
// preferred backend can win over one that has replied. Backends without a result then have
// errNotProbed. If none has replied, each has its own error.
func probe(ctx context.Context, bs []*Backend, wait time.Duration) []error {
	ctx, cancel := context.WithCancelCause(ctx)
	type outcome struct {
		index int
		err   error
	}
	var (
		running         sync.WaitGroup
		outcomes        = make(chan outcome, len(bs))
		errs            = slices.Repeat([]error{errNotProbed}, len(bs))
		precedingFailed = make(chan struct{}) // closed when the preceding backend has failed
	)
	close(precedingFailed)
	for i, b := range bs {
		delay := time.Duration(i) * stagger
		if b.searches {
			delay = min(delay, searchDelay)
		}
		previousFailed, failed := precedingFailed, make(chan struct{})
		precedingFailed = failed
		running.Go(func() {
			var err error
			select {
			case <-previousFailed:
			case <-time.After(min(delay, wait/4)):
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
			if err == nil {
				err = b.runProbe(ctx)
			}
			if err != nil {
				close(failed)
			}
			outcomes <- outcome{i, err}
		})
	}
	start := time.Now()
	preferenceTimer, searchTimer := time.After(preferenceTime), time.After(searchTime)
	preferenceOver, searchOver := false, false
	for !isDecided(bs, errs, preferenceOver, searchOver) {
		select {
		case o := <-outcomes:
			errs[o.index] = o.err
			if o.err == nil && !bs[o.index].searches && time.Since(start) < preferenceTime-afterReply {
				preferenceTimer = time.After(afterReply)
			}
		case <-preferenceTimer:
			preferenceOver = true
		case <-searchTimer:
			searchOver, searchTimer = true, time.After(foundDeviceTime)
		}
	}
	cancel(&TimeoutError{time.Since(start)})
	running.Wait()
	close(outcomes)
	for o := range outcomes {
		if !slices.Contains(errs, nil) { // otherwise these results are not final
			errs[o.index] = o.err
		}
	}
	return errs
}

// isDecided reports whether a probe needs no further result. Until preferenceOver, it needs
// the results of all backends before the first available one. If no backend is available, it
// needs all results. After searchOver, it does not need the result of a search if the gateway
// refuses everything else and the search.
func isDecided(bs []*Backend, errs []error, preferenceOver, searchOver bool) bool {
	if preferenceOver && slices.Contains(errs, nil) {
		return true
	}
	isRefused := true
	for i, err := range errs {
		isRefused = isRefused && (bs[i].searches || errno.IsRefused(err))
	}
	for i, err := range errs {
		switch {
		case err == nil:
			return true
		case errors.Is(err, errNotProbed) && (!searchOver || !isRefused || bs[i].isPromising()):
			return false
		}
	}
	return true
}

// isPromising reports whether a backend uses no search, or its search may still succeed.
func (b *Backend) isPromising() bool {
	p, is := b.Backend.(interface{ Promising() bool })
	return !b.searches || !is || p.Promising()
}

// EnsureProbed returns nil if a backend is available. If that is unknown, EnsureProbed probes
// the backend.
func (c *Client) EnsureProbed(ctx context.Context, b *Backend, wait time.Duration) error {
	var (
		isKnown, othersAvailable bool
		probeErr                 error
	)
	c.owner.loop.Do(func() {
		isKnown = b.probeErr == nil || !b.mayBeAvailable()
		probeErr, othersAvailable = b.probeErr, slices.ContainsFunc(c.available(), func(o *Backend) bool { return o != b })
	})
	if !isKnown {
		if othersAvailable && !b.searches {
			wait = min(wait, otherBackendTimeout)
		}
		bounded, cancel := bound(ctx, wait)
		defer cancel()
		probeErr = b.runProbe(bounded)
		if ctx.Err() != nil && !IsTimeout(ctx) {
			return probeErr // the call was cancelled; the state is still unknown
		}
		c.owner.loop.Do(func() { b.probeErr, b.probedAt = probeErr, time.Now() })
	}
	if b.searches && othersAvailable && errors.Is(probeErr, backends.ErrNoReply) {
		return unsupportedError{probeErr}
	}
	if d, is := b.Backend.(interface{ OtherDevice() netip.Addr }); is && probeErr == nil && othersAvailable && d.OtherDevice().IsValid() {
		return fmt.Errorf("%s: %w: the device at %v does not belong to the gateway, which supports another protocol", b.name, backends.ErrUnsupported, d.OtherDevice())
	}
	return probeErr
}

// unsupportedError is the error of a search that found no device, although the gateway
// replies to another backend. It wraps ErrUnsupported in place of ErrNoReply.
type unsupportedError struct{ error }

func (e unsupportedError) Unwrap() error { return backends.ErrUnsupported }

// ResetProbes makes the next call probe all backends again.
func (c *Client) ResetProbes() { c.owner.loop.Do(c.resetProbes) }

func (c *Client) resetProbes() {
	for _, b := range c.backends {
		if b.config.Ready == nil || b.probe != nil {
			b.probeErr = errNotProbed
		}
	}
}
