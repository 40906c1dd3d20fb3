package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/state"
)

// Sink receives what an owner reports to a client. Its methods must not block and must not
// call an owner.
type Sink interface {
	// HandleChanged is called after the status of a handle has changed. The arguments before
	// and after are the mappings that were granted before and after the change. If kind is 0,
	// the change is not an event.
	HandleChanged(h *Handle, kind Kind, before, after []backends.Mapping, reason string, at time.Time)
	// CombineErrors makes one error of the errors of several backends of a gateway. The spec is
	// what was requested, or nil if no backend replied to a probe. The address is the zero Addr
	// for ready-made backends.
	CombineErrors(attempts []error, gateway netip.Addr, requested *Spec) error
	// RecordsChanged is called if the results of Client.Records or Client.InUse may have
	// changed.
	RecordsChanged()
	// Handler returns the handler that receives log records.
	Handler() slog.Handler
}

// Client connects one Forwarder to an owner.
type Client struct {
	owner    *Owner
	sink     Sink
	backends []*Backend // the preferred one first

	// Only code on the owner's loop uses these fields.
	unusable   bool          // the gateway is not the default route
	closing    bool          // Close was called
	busy       int           // the number of flows and requests that Close waits for
	idle       chan struct{} // closed when busy becomes 0; nil if Close does not wait
	checkEvery time.Duration // the interval of checks; not positive: no checks
}

// flowDone is called when a flow or request has ended.
func (c *Client) flowDone() {
	if c.busy--; c.busy == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// owns reports whether a handle belongs to the client's Forwarder.
func (c *Client) owns(h *Handle) bool { return h.sink == c.sink }

// ErrMoved is returned if the handle was attached to another owner during the call.
var ErrMoved = errors.New("the default route changed")

// ErrEnded is returned if the owner has ended.
var ErrEnded = fmt.Errorf("the gateway is no longer in use: %w", net.ErrClosed)

// Attach attaches a handle to the owner. The owner requests it at the given time; the zero
// time means that a call will request it. Mappings that the handle has at another gateway are
// kept until this gateway grants the handle. Until then they count as lost, because the
// handle no longer receives their changes.
func (c *Client) Attach(h *Handle, at time.Time, reason string) {
	if old := h.client.Load(); old != nil {
		old.owner.loop.Do(func() { old.detach(h) })
	}
	c.owner.loop.Do(func() {
		h.oldClients = slices.DeleteFunc(h.oldClients, func(old *Client) bool { return old.owner == c.owner })
		h.client.Store(c)
		g := c.owner.groupOf(h.spec())
		g.handles = append(g.handles, h)
		for _, e := range g.heldBy(h) {
			if e.state == active {
				h.backend = e.backend
			}
		}
		if held := h.entries(); len(held) == len(h.spec().Members()) { // the handle returns to a gateway that still has its mappings
			for _, e := range held {
				e.doubtful, e.nextRequest = true, earlier(e.nextRequest, at)
			}
			at = time.Time{}
		} else {
			h.backend = nil
			if len(h.Status().Grants()) > 0 {
				h.publish(func(s *Status) { s.Lost = true }, cmp.Or(reason, ErrMoved.Error()))
			}
		}
		if h.reason = reason; !at.IsZero() {
			h.nextRequest = at
			h.publish(func(s *Status) { s.NextRequest = at }, reason)
		}
		c.owner.arm(g)
	})
}

// detach undoes Attach.
func (c *Client) detach(h *Handle) {
	g := c.owner.groupOf(h.spec())
	g.handles = without(g.handles, h)
	if h.cancel != nil {
		h.cancel(ErrMoved)
	}
	h.backend, h.nextRequest = nil, time.Time{}
	h.client.Store(nil)
	if len(g.heldBy(h)) > 0 {
		h.oldClients = append(h.oldClients, c)
	}
	g.deleteIfEmpty()
}

// runFlow runs a flow for a handle and waits for its result. If ctx ends first, the flow
// ends after the request that is in flight.
func (c *Client) runFlow(ctx context.Context, h *Handle, run func(f *flow) error) error {
	var err error
	f := &flow{client: c, done: make(chan struct{}), run: func(f *flow) {
		err = f.runFor(ctx, h, func() error { return run(f) })
	}}
	if !c.owner.loop.Do(func() {
		f.group = c.owner.groupOf(h.spec())
		c.owner.enqueue(f)
	}) {
		return ErrEnded
	}
	for ctxDone := ctx.Done(); ; {
		select {
		case <-f.done:
			return err
		case <-c.owner.ctx.Done():
			return cmp.Or(context.Cause(ctx), ErrEnded)
		case <-ctxDone:
			if !IsTimeout(ctx) || f.inFlight.Load() {
				return context.Cause(ctx)
			}
			ctxDone = nil // the flow ends at once; wait for its error, which has more details
		}
	}
}

// Enable requests the mappings of a handle. If Enable fails, the handle holds nothing, and
// it is not requested again.
func (c *Client) Enable(ctx context.Context, h *Handle) error {
	return c.runFlow(ctx, h, func(f *flow) error { return f.create(h, h.spec(), "enabled") })
}

// Refresh renews the mappings of a handle. If they cannot be renewed, Refresh creates them
// again.
func (c *Client) Refresh(ctx context.Context, h *Handle) error {
	return c.runFlow(ctx, h, func(f *flow) error { return f.renewNow(h) })
}

// Remap deletes the mappings of a handle and requests them again, with the same external port
// if possible. A mapping that another handle holds too is not deleted. If the request fails, it
// is repeated in the background.
func (c *Client) Remap(ctx context.Context, h *Handle) error {
	return c.runFlow(ctx, h, func(f *flow) error {
		if err := f.checkAttached(h); err != nil {
			return err
		}
		_ = f.releaseAll(h) // a deletion that fails is retried
		return f.recreate(h, "mapped again")
	})
}

// UPnPURL returns the URL of the root description of the gateway's UPnP device if it is known,
// or "".
func (c *Client) UPnPURL() (url string) {
	c.owner.loop.Do(func() {
		for _, b := range c.backends {
			url = cmp.Or(url, b.URL())
		}
	})
	return url
}

// Change replaces the spec of a handle. If the granted mappings can serve the new spec, they
// are renewed. Otherwise they are deleted, and the new spec is requested. If that fails, the
// previous spec is requested again.
func (c *Client) Change(ctx context.Context, h *Handle, s *Spec) error {
	if before := h.spec(); s.Internal != before.Internal || s.ports() != before.ports() {
		return c.changeGroup(ctx, h, before, s)
	}
	return c.runFlow(ctx, h, func(f *flow) error {
		if !s.sameEndpoint(h.spec()) {
			return f.replace(h, s)
		}
		if err := h.setSpec(s); err != nil {
			return err
		}
		return f.renewNow(h)
	})
}

// changeGroup is Change for another internal endpoint. The entries of that endpoint belong to
// another group.
func (c *Client) changeGroup(ctx context.Context, h *Handle, before, s *Spec) error {
	preferred := uint16(0)
	err := c.runFlow(ctx, h, func(f *flow) error {
		if h.backend != nil {
			preferred = h.preferred
		}
		_ = f.releaseAll(h)
		return nil
	})
	if err != nil {
		return err
	}
	c.setGroup(h, s, 0)
	err = c.runFlow(ctx, h, func(f *flow) error { return f.create(h, s, "refreshed") })
	if err == nil || errors.Is(err, ErrMoved) || errors.Is(err, ErrEnded) {
		return err
	}
	c.setGroup(h, before, preferred)
	if preferred == 0 || ctx.Err() != nil { // the previous spec is requested in the background
		c.owner.loop.Do(func() {
			(&flow{Owner: c.owner, ctx: ctx}).recordFailure(h, err)
			c.owner.arm(c.owner.groupOf(h.spec()))
		})
		return err
	}
	restoreErr := c.runFlow(ctx, h, func(f *flow) error { return f.recreate(h, "refreshed") })
	if restoreErr != nil {
		err = errors.Join(err, errors.New("the previous mapping cannot be restored: "+restoreErr.Error()))
	}
	return err
}

// setGroup changes the spec of a handle and moves it to the group of that spec. The handle
// must not hold entries.
func (c *Client) setGroup(h *Handle, s *Spec, preferred uint16) {
	c.owner.loop.Do(func() {
		if !c.owner.isAttached(h) {
			return
		}
		old, next := c.owner.groupOf(h.spec()), c.owner.groupOf(s)
		old.handles = without(old.handles, h)
		next.handles = append(next.handles, h)
		h.publish(func(now *Status) { now.Spec = s }, "")
		h.backend, h.preferred = nil, preferred
		old.deleteIfEmpty()
	})
}

// ExternalAddr requests the gateway's external address from a backend. The request continues
// if ctx ends: PCP creates a mapping to learn the address, and that mapping must be deleted.
func (c *Client) ExternalAddr(ctx context.Context, b *Backend, timeout time.Duration) (netip.Addr, error) {
	var (
		o, done = c.owner, make(chan struct{})
		addr    netip.Addr
		err     error
		started bool
	)
	if !o.loop.Do(func() {
		c.busy++
		started = o.spawn(func() {
			ctx, cancel := bound(o.ctx, timeout)
			defer cancel()
			addr, err = b.ExternalAddr(ctx)
			close(done)
			o.loop.Post(c.flowDone)
		})
	}) || !started {
		return netip.Addr{}, ErrEnded
	}
	select {
	case <-done:
		return addr, err
	case <-ctx.Done():
		return netip.Addr{}, context.Cause(ctx)
	}
}

// SetUnusable records that the gateway is not on the default route. The statuses of its
// handles report err, and next as the time of the next comparison of routes. The mappings of
// the handles count as lost until they are granted again.
func (c *Client) SetUnusable(err error, reason string, next time.Time) {
	c.owner.loop.Do(func() {
		c.unusable = true
		now := time.Now()
		for _, h := range c.handles() {
			h.lostBefore, h.nextRequest = now, time.Time{}
			h.publish(func(s *Status) { s.Lost, s.Err, s.NextRequest = true, err, next }, reason)
		}
	})
}

// SetUsable undoes SetUnusable. All handles of the client are requested again at the given
// time.
func (c *Client) SetUsable(reason string, at time.Time) {
	c.owner.loop.Do(func() { c.unusable = false })
	c.VerifySoon(reason, at)
}

// VerifySoon requests all handles of the client again at the given time. It is called after
// an event that may have made the gateway lose its mappings.
func (c *Client) VerifySoon(reason string, at time.Time) {
	c.owner.loop.Do(func() {
		c.owner.verifySoon(func(e *entry) bool { return e.isHeldFor(c) }, false, reason, at)
		c.wake(reason, at)
	})
}

// Wake makes the owner request, at the given time, the client's handles that have no
// mapping.
func (c *Client) Wake(reason string, at time.Time) {
	c.owner.loop.Do(func() { c.wake(reason, at) })
}

func (c *Client) wake(reason string, at time.Time) {
	for _, h := range c.handles() {
		if h.backend == nil && !c.unusable && (h.nextRequest.IsZero() || at.Before(h.nextRequest)) {
			h.nextRequest, h.reason = at, reason
			h.publish(func(s *Status) { s.NextRequest = at }, reason)
			c.owner.arm(c.owner.groupOf(h.spec()))
		}
	}
}

// handles returns the client's open handles, except those with Once.
func (c *Client) handles() (out []*Handle) {
	for _, g := range c.owner.sortedGroups() {
		for _, h := range g.handles {
			if h.client.Load() == c && !h.spec().Once && !h.Status().Closed {
				out = append(out, h)
			}
		}
	}
	return out
}

// InUse reports whether a handle is attached to the client, holds an entry, or has a request
// in flight.
func (c *Client) InUse() (used bool) {
	c.owner.loop.Do(func() {
		used = c.busy > 0 || len(c.handles()) > 0 ||
			slices.ContainsFunc(c.owner.allEntries(), func(e *entry) bool { return e.isHeldFor(c) })
	})
	return used
}

// LastReply returns the time of the gateway's last reply to a deletion.
func (c *Client) LastReply() time.Time {
	return c.owner.start.Add(time.Duration(c.owner.lastReply.Load()))
}

// Close attempts the pending deletions of the client once more and waits for its flows until
// ctx ends. It then leaves the owner, which ends with its last client. Close returns a record
// and an error for each mapping that remains on the gateway.
func (c *Client) Close(ctx context.Context) (records []state.Record, err error) {
	o := c.owner
	o.loop.Do(func() {
		c.closing = true
		for _, e := range o.allEntries() { // including deletions of another client that has left
			if e.deletion != nil && e.deletion.client == c && e.state != restored {
				c.retryNow(e)
			}
		}
	})
	for finished := false; !finished; {
		idle := make(chan struct{})
		o.loop.Do(func() {
			if finished = c.busy == 0 || ctx.Err() != nil; !finished {
				c.idle = idle
				return
			}
			err, records = o.remainingErrors(c, context.Cause(ctx)), c.records()
			o.removeClient(c)
			close(idle)
		})
		select {
		case <-idle:
		case <-ctx.Done():
		}
	}
	o.registry.release(ctx, c)
	return records, err
}

// Discard removes the client without deleting its mappings, as the end of the process would.
func (c *Client) Discard() {
	ctx, cancel := context.WithTimeout(context.Background(), deleteRetryTimeout)
	defer cancel()
	c.owner.loop.Do(func() {
		c.owner.discard(c)
		c.owner.removeClient(c)
	})
	c.owner.registry.release(ctx, c)
}
