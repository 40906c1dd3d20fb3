package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
)

// The pace of a probe: a less preferred backend is asked when the one before has not
// answered for a moment, and one that has answered waits for those before it. If one
// that the gateway is simply asked about has answered, the question before it is not in
// flight for long. A search takes its time, and so begins early; but common gateways do
// one thing at a time, and one that answers a search first answers the question late.
const (
	stagger         = 50 * time.Millisecond
	headStart       = 25 * time.Millisecond // before a search
	preferenceTime  = 250 * time.Millisecond
	afterReply      = 50 * time.Millisecond
	foundDeviceTime = 250 * time.Millisecond // for a device that has answered the search, and not yet what it is asked

	// searchTime is how long a search is waited for if nothing else can come: it allows
	// devices a second. It is a provisional verdict: the next call searches again.
	searchTime = 1200 * time.Millisecond
	// lateAnswer bounds the wait for a backend if the gateway has answered another: it is
	// there, and not slow.
	otherBackendTimeout = time.Second
	// failureAge is how long a backend that failed is not asked again, if others answer.
	failureAge = 30 * time.Second
)

// errPending is the verdict on a backend of which it is not known whether it answers.
var errNotProbed = errors.New("no verdict yet")

// mayAnswer reports whether a backend has not failed a short time ago: the gateway may have
// been away.
func (b *Backend) mayBeAvailable() bool {
	return b.probeErr == nil || errors.Is(b.probeErr, errNotProbed) || time.Since(b.probedAt) > failureAge
}

// probing is a probe in flight, which several callers share.
type probeRun struct {
	client  *Client
	callers int
	stop    context.CancelCauseFunc
	done    chan struct{}
	err     error // valid after done
}

// Probe returns nil if one of the client's backends answers. Callers at the same time
// share one probe, which wait bounds. A probe goes on if a caller gives up, but not if
// the time of the last one is over.
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
			<-p.done // it has been stopped
		}
		if p.client == c {
			return p.err
		} // another client may have other backends
	}
}

// startProbe asks the backends of a client.
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

// recordProbe keeps what a probe came to, and returns nil if a backend answers.
func (o *Owner) recordProbe(c *Client, errs []error) error {
	for i, b := range c.backends {
		if b.probeErr, b.probedAt = errs[i], time.Now(); errors.Is(errs[i], errNotProbed) {
			errs[i] = b.notFound(backends.ErrNoReply)
		}
	}
	available := c.available()
	if len(available) == 0 {
		return c.sink.CombineErrors(errs, true)
	}
	o.log().Info("gateway chosen", "gateway", o.key.Gateway.Addr(), "backend", available[0].name)
	return nil
}

// probe asks backends, and returns an error for each when the first that answers is
// one that no better one can be waited for. Those that it did not need to wait for are
// errPending.
func probe(ctx context.Context, bs []*Backend, wait time.Duration) []error {
	ctx, cancel := context.WithCancel(ctx)
	type outcome struct {
		index int
		err   error
	}
	var (
		running         sync.WaitGroup
		outcomes        = make(chan outcome, len(bs))
		errs            = slices.Repeat([]error{errNotProbed}, len(bs))
		precedingFailed = make(chan struct{}) // closed when the backend before has failed
	)
	close(precedingFailed)
	for i, b := range bs {
		delay := time.Duration(i) * stagger
		if b.searches {
			delay = min(delay, headStart)
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
	cancel()
	running.Wait() // what comes of these is not known
	return errs
}

// isDecided reports whether no backend without a verdict is waited for: until patience is
// over, those before the first that has answered; then all if none has; and at last, if
// the verdict is provisional, no search that no device has answered.
func isDecided(bs []*Backend, errs []error, preferenceOver, searchOver bool) bool {
	if preferenceOver && slices.Contains(errs, nil) {
		return true
	}
	for i, err := range errs {
		switch {
		case err == nil:
			return true
		case errors.Is(err, errNotProbed) && (!searchOver || bs[i].isPromising()):
			return false
		}
	}
	return true
}

// isPromising reports whether a backend needs no search, or a device has answered it.
func (b *Backend) isPromising() bool {
	p, is := b.Backend.(interface{ Promising() bool })
	return !b.searches || is && p.Promising()
}

// Ensure returns nil if a backend answers, and asks one that is not known yet.
func (c *Client) EnsureProbed(ctx context.Context, b *Backend, wait time.Duration) error {
	var (
		isKnown, othersAvailable bool
		probeErr                 error
	)
	c.owner.loop.Do(func() {
		isKnown = b.probeErr == nil || !b.mayBeAvailable()
		probeErr, othersAvailable = b.probeErr, len(c.available()) > 0
	})
	if !isKnown {
		switch {
		case othersAvailable && b.searches:
			wait = min(wait, otherBackendTimeout+searchTime)
		case othersAvailable:
			wait = min(wait, otherBackendTimeout)
		}
		bounded, cancel := bound(ctx, wait)
		defer cancel()
		probeErr = b.runProbe(bounded)
		if ctx.Err() != nil && !IsTimeout(ctx) {
			return probeErr // it is not known yet
		}
		c.owner.loop.Do(func() { b.probeErr, b.probedAt = probeErr, time.Now() })
	}
	if b.searches && othersAvailable && errors.Is(probeErr, backends.ErrNoReply) {
		return b.notFound(backends.ErrUnsupported) // the gateway answers: it only has no such device
	}
	return probeErr
}

// Forget makes the next call probe anew.
func (c *Client) ResetProbes() { c.owner.loop.Do(c.resetProbes) }

func (c *Client) resetProbes() {
	for _, b := range c.backends {
		if b.config.Ready == nil || b.probe != nil {
			b.probeErr = errNotProbed
		}
	}
}
