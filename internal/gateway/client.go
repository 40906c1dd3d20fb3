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

// Sink is how an owner tells a client. Its methods never block and call no owner.
type Sink interface {
	// Happened tells that a handle has another status. Kind is 0 if that is no event.
	HandleChanged(h *Handle, kind Kind, before, after []backends.Mapping, reason string, at time.Time)
	// Failure makes one error of those of several backends. Probe says that none answers.
	CombineErrors(attempts []error, probe bool) error
	// RecordsChanged tells that what Client.Records returns has changed, or InUse.
	RecordsChanged()
	// Handler takes log records.
	Handler() slog.Handler
}

// Client is the share of a Forwarder in an owner.
type Client struct {
	owner    *Owner
	sink     Sink
	backends []*Backend // the preferred first

	// Owned by the owner's loop.
	unusable bool          // the gateway is not the default route
	closing  bool          // Close was called
	busy     int           // flows and requests that Close waits for
	idle     chan struct{} // closed when there are none; nil if Close does not wait
}

// finished counts a flow out.
func (c *Client) flowDone() {
	if c.busy--; c.busy == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// isOwn reports whether a handle is one of the client's Forwarder.
func (c *Client) owns(h *Handle) bool { return h.sink == c.sink }

// ErrMoved says that a handle was attached to another owner in the meantime.
var ErrMoved = errors.New("the default route changed")

// ErrEnded says that the owner has ended.
var ErrEnded = fmt.Errorf("the gateway is not in use any more: %w", net.ErrClosed)

// Attach makes a handle the owner's, which requests it at a time, unless that is zero.
// What it has at another gateway is kept until it is granted here, and counts as lost:
// nobody tells the handle any more what becomes of it.
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
		if held := h.entries(); len(held) == len(h.spec().Members()) { // it comes back
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

// detach is the inverse of Attach.
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

// ask runs a flow about a handle, and waits for its result. If ctx ends first, the flow
// ends too, after the request that is in flight.
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
			ctxDone = nil // the flow ends now, and has more to tell
		}
	}
}

// Enable requests a handle. If it fails, nothing is held, and no request follows.
func (c *Client) Enable(ctx context.Context, h *Handle) error {
	return c.runFlow(ctx, h, func(f *flow) error { return f.create(h, h.spec(), "enabled") })
}

// Refresh renews what a handle has, or requests it anew.
func (c *Client) Refresh(ctx context.Context, h *Handle) error {
	return c.runFlow(ctx, h, func(f *flow) error { return f.renewNow(h) })
}

// Change requests another spec in place of what a handle has. What the gateway granted
// is renewed if that can serve the spec; else it is deleted first, and requested again
// if the spec is refused.
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

// regroup is Change to another internal endpoint, whose entries are in another group.
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
	if preferred == 0 || ctx.Err() != nil { // it is requested in the background
		c.owner.loop.Do(func() {
			(&flow{Owner: c.owner, ctx: ctx}).recordFailure(h, err)
			c.owner.arm(c.owner.groupOf(h.spec()))
		})
		return err
	}
	restoreErr := c.runFlow(ctx, h, func(f *flow) error { return f.recreate(h, "refreshed") })
	if restoreErr != nil {
		err = errors.Join(err, errors.New("and the mapping as it was cannot be had back: "+restoreErr.Error()))
	}
	return err
}

// setPlace makes a handle one of the group of another spec. It has nothing just now.
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

// ExternalAddr asks a backend for the gateway's external address. The request goes on
// if ctx ends: PCP asks by a mapping that has to be deleted.
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

// SetUnusable records that the gateway is not the default route, because of err, and when
// routes are compared next. What its handles have counts as lost until it is granted
// again.
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

// SetUsable is the inverse of SetUnusable. Everything is requested again at a time.
func (c *Client) SetUsable(reason string, at time.Time) {
	c.owner.loop.Do(func() { c.unusable = false })
	c.VerifySoon(reason, at)
}

// VerifySoon requests all of the client's handles again at a time: something happened after
// which the gateway may have lost them.
func (c *Client) VerifySoon(reason string, at time.Time) {
	c.owner.loop.Do(func() {
		c.owner.verifySoon(func(e *entry) bool { return e.isHeldFor(c) }, false, reason, at)
		c.wake(reason, at)
	})
}

// Wake requests those of the client's handles that are not granted at a time.
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

// handles returns the client's handles that are to be kept alive.
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

// InUse reports whether the client's handles are attached or have anything.
func (c *Client) InUse() (used bool) {
	c.owner.loop.Do(func() {
		used = c.busy > 0 || len(c.handles()) > 0 ||
			slices.ContainsFunc(c.owner.allEntries(), func(e *entry) bool { return e.isHeldFor(c) })
	})
	return used
}

// Answered returns when the gateway last answered a deletion.
func (c *Client) Answered() time.Time {
	return c.owner.start.Add(time.Duration(c.owner.answered.Load()))
}

// Close tries the pending deletions of the client once more, waits for all of its flows
// until ctx ends, and leaves the owner, which ends with its last client. It returns
// records of and an error for each mapping that remains.
func (c *Client) Close(ctx context.Context) (records []state.Record, err error) {
	o := c.owner
	o.loop.Do(func() {
		c.closing = true
		for _, e := range o.allEntries() { // also what another client that left is about to delete
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

// Abandon leaves the owner and whatever the client holds, as the end of the process
// would.
func (c *Client) Discard() {
	ctx, cancel := context.WithTimeout(context.Background(), deleteRetryTimeout)
	defer cancel()
	c.owner.loop.Do(func() {
		c.owner.discard(c)
		c.owner.removeClient(c)
	})
	c.owner.registry.release(ctx, c)
}
