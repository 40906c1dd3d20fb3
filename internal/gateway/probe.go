package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
)

const (
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
			if slices.ContainsFunc(c.backends, (*Backend).isAvailable) {
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
		defer stop(nil)
		ctx, cancel := bound(ctx, wait)
		defer cancel()
		first, roundTrip := c.recall()
		r := newProbeRound(ctx, c.backends, first, roundTrip, wait)
		r.run()
		if !o.loop.Do(func() {
			p.err = o.recordProbe(c, r)
			if o.currentProbe == p {
				o.currentProbe = nil
			}
		}) {
			p.err = ErrEnded
		}
		close(p.done)
		r.awaitLate(func(b *Backend) {
			o.loop.Do(func() { o.recordLate(b) })
		})
	}) {
		p.err = ErrEnded
		close(p.done)
	}
}

// recordProbe records the results of a probe. It returns nil if a backend is available.
func (o *Owner) recordProbe(c *Client, r *probeRound) error {
	for i, b := range c.backends {
		b.probeErr, b.probedAt, b.repliedLate = r.errs[i], time.Now(), false
	}
	available := c.available()
	if len(available) == 0 {
		return c.sink.CombineErrors(r.errs, o.key.Gateway.Addr(), nil)
	}
	o.registry.learn(o.key, r.answers(), r.roundTrip)
	o.log().Info("gateway chosen", "gateway", o.key.Gateway.Addr(), "backend", available[0].name)
	return nil
}

// recordLate records that the gateway replied to a probe after another backend was chosen. The
// choice does not change, but the next probe of the gateway asks this backend first.
func (o *Owner) recordLate(b *Backend) {
	b.repliedLate = true
	o.registry.learn(o.key, map[string]answer{b.name: b.answer()}, 0)
	o.log().Info("gateway replied late", "gateway", o.key.Gateway.Addr(), "backend", b.name)
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
		probeErr, othersAvailable = b.probeErr, slices.ContainsFunc(c.backends, func(o *Backend) bool { return o != b && o.isAvailable() })
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
		c.owner.loop.Do(func() {
			if b.probeErr, b.probedAt = probeErr, time.Now(); probeErr == nil {
				c.owner.registry.learn(c.owner.key, map[string]answer{b.name: b.answer()}, 0)
			}
		})
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
