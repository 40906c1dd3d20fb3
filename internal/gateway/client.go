package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/priority"
)

// Sink is how an owner tells a client. Its methods never block and call no owner.
type Sink interface {
	// Happened tells that a handle has another status. Kind is 0 if that is no event.
	Happened(h *Handle, kind Kind, before, after []backends.Mapping, reason string, at time.Time)
	// Failure makes one error of those of several backends. Probe says that none answers.
	Failure(attempts []error, probe bool) error
	// Remains tells that the gateway has a mapping whose deletion got no reply, and
	// Settled that one of these, or of an earlier run, is deleted, taken over or over.
	Remains(port uint16, m backends.Mapping)
	Settled(m backends.Mapping)
	// Left tells that what a handle had at another gateway is deleted or given up.
	Left()
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
	busy     int           // ops that Close waits for
	idle     chan struct{} // closed when there are none; nil if Close does not wait
}

// done counts an op out.
func (c *Client) done() {
	if c.busy--; c.busy == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// ErrMoved says that a handle was attached to another owner in the meantime.
var ErrMoved = errors.New("the default route changed")

// ErrEnded says that the owner has ended.
var ErrEnded = fmt.Errorf("the gateway is not in use any more: %w", net.ErrClosed)

// Attach makes a handle the owner's, which requests it at a time, unless that is zero.
// What it has at another gateway is kept until it is granted here.
func (c *Client) Attach(h *Handle, at time.Time, reason string) {
	if old := h.client.Load(); old != nil {
		old.owner.loop.Do(func() { old.detach(h) })
	}
	c.owner.loop.Do(func() {
		h.left = without(h.left, c)
		h.client.Store(c)
		h.unusable = c.unusable
		g := c.owner.groupOf(h.wish().Internal)
		g.handles = append(g.handles, h)
		for _, e := range g.entries {
			if e.state == active && slices.Contains(e.holders, h) { // it comes back
				h.backend = e.backend
				e.doubtful, e.due, at = true, at, time.Time{}
			}
		}
		if h.reason = reason; !at.IsZero() {
			h.due = at
			h.publish(func(s *Status) { s.Next = at }, reason)
		}
		c.owner.arm(g)
	})
}

// detach is the inverse of Attach.
func (c *Client) detach(h *Handle) {
	g := c.owner.groupOf(h.wish().Internal)
	g.handles = without(g.handles, h)
	if h.stop != nil {
		h.stop(ErrMoved)
	}
	h.backend, h.due = nil, time.Time{}
	h.client.Store(nil)
	if g.holds(h) {
		h.left = append(h.left, c)
	}
	g.drop()
}

// Client returns the client that the handle is attached to, or nil.
func (h *Handle) Client() *Client { return h.client.Load() }

// ask runs an op about a handle, and waits for its result. If ctx ends first, the op
// ends too, after the request that is in flight.
func (c *Client) ask(ctx context.Context, h *Handle, run func(flow context.Context, p *op) error) error {
	var err error
	done := make(chan struct{})
	p := &op{
		client: c,
		run:    func(_ context.Context, p *op) { err = p.about(ctx, c, h, run) },
		after:  func() { close(done) },
	}
	if !c.owner.loop.Post(func() {
		p.group = c.owner.groupOf(h.wish().Internal)
		c.owner.enqueue(p)
	}) {
		return ErrEnded
	}
	select {
	case <-done:
		return err
	case <-c.owner.loop.Ended():
		return ErrEnded
	case <-ctx.Done():
	}
	if IsTimeout(ctx) && !p.inFlight.Load() { // it ends now, and has more to tell
		select {
		case <-done:
			return err
		case <-c.owner.loop.Ended():
		}
	}
	return context.Cause(ctx)
}

// about runs a part of an op that is about one handle. Its context ends with that of the
// caller, and if the handle is closed or detached.
func (p *op) about(ctx context.Context, c *Client, h *Handle, run func(flow context.Context, p *op) error) error {
	flow, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(p.ctx, func() { stop(ErrEnded) })()
	err := ErrEnded
	p.do(func() {
		switch {
		case h.Status().Closed:
		case h.client.Load() != c:
			err = ErrMoved
		default:
			err, h.stop = nil, stop
		}
	})
	if err != nil {
		return err
	}
	defer p.do(func() {
		if p.has(h) {
			h.stop = nil
		}
	})
	return run(flow, p)
}

// Enable requests a handle. If it fails, nothing is held, and no request follows.
func (c *Client) Enable(ctx context.Context, h *Handle) error {
	return c.ask(ctx, h, func(flow context.Context, p *op) error {
		return p.establish(flow, h, h.wish(), "enabled")
	})
}

// Refresh renews what a handle has, or requests it anew.
func (c *Client) Refresh(ctx context.Context, h *Handle) error {
	return c.ask(ctx, h, func(flow context.Context, p *op) error {
		p.requests = priority.WithFresh(p.requests, time.Now())
		p.do(func() {
			for _, e := range h.entries() {
				e.wanted = true
			}
			h.reason = "refreshed"
		})
		p.pass(flow)
		var err error
		intact := true
		p.do(func() { intact, err = !p.has(h) || h.isIntact(), h.Status().Err })
		if intact {
			return err
		}
		return p.ensure(flow, h, "refreshed")
	})
}

// Change requests another wish in place of what a handle has. What the gateway granted
// is renewed if that can serve the wish; else it is deleted first, and requested again
// if the wish is refused.
func (c *Client) Change(ctx context.Context, h *Handle, w *Wish) error {
	if w.samePlace(&h.wish().Params) {
		var err error
		c.owner.loop.Do(func() { err = h.setWish(w) })
		if err != nil {
			return err
		}
		return c.Refresh(ctx, h)
	}
	return c.ask(ctx, h, func(flow context.Context, p *op) error { return p.replace(flow, h, w) })
}

// setWish changes what a handle is renewed with, unless another shares what it has.
func (h *Handle) setWish(w *Wish) error {
	for _, e := range h.entries() {
		if len(e.holders) > 1 && !e.params.SameTerms(&w.Params) {
			return &ConflictError{Protocol: e.protocol, Port: h.Port}
		}
	}
	for _, e := range h.entries() {
		e.params = &w.Params
	}
	h.publish(func(s *Status) { s.Wish = w }, "")
	return nil
}

// ExternalAddr asks a backend for the gateway's external address. The request goes on
// if ctx ends: PCP asks by a mapping that has to be deleted.
func (c *Client) ExternalAddr(ctx context.Context, b *Backend, timeout time.Duration) (netip.Addr, error) {
	var (
		addr netip.Addr
		err  = ErrEnded
		done = make(chan struct{})
		o    = c.owner
	)
	if !o.loop.Do(func() {
		c.busy++
		o.work.Go(func() {
			ctx, cancel := bound(o.ctx, timeout)
			defer cancel()
			addr, err = b.ExternalAddr(ctx)
			close(done)
			o.loop.Post(c.done)
		})
	}) {
		return netip.Addr{}, err
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
			h.unusable, h.lostAt, h.due = true, now, time.Time{}
			h.publish(func(s *Status) { s.Lost, s.Err, s.Next = true, err, next }, reason)
		}
	})
}

// SetUsable is the inverse of SetUnusable. Everything is requested again at a time.
func (c *Client) SetUsable(reason string, at time.Time) {
	c.owner.loop.Do(func() {
		c.unusable = false
		for _, h := range c.handles() {
			h.unusable = false
		}
	})
	c.Suspect(reason, at)
}

// Suspect requests all of the client's handles again at a time: something happened after
// which the gateway may have lost them.
func (c *Client) Suspect(reason string, at time.Time) {
	c.owner.loop.Do(func() {
		c.owner.suspect(func(e *entry) bool { return c.holds(e) }, false, reason, at)
		c.wake(reason, at)
	})
}

// Wake requests those of the client's handles that are not granted at a time.
func (c *Client) Wake(reason string, at time.Time) {
	c.owner.loop.Do(func() { c.wake(reason, at) })
}

func (c *Client) wake(reason string, at time.Time) {
	for _, h := range c.handles() {
		if h.backend == nil && !c.unusable && (h.due.IsZero() || at.Before(h.due)) {
			h.due, h.reason = at, reason
			h.publish(func(s *Status) { s.Next = at }, reason)
			c.owner.arm(c.owner.groupOf(h.wish().Internal))
		}
	}
}

// wakeUngranted requests now what no client was granted.
func (o *Owner) wakeUngranted() {
	for _, c := range o.joined {
		c.wake(o.change, time.Now())
	}
}

// handles returns the client's handles that are to be kept alive.
func (c *Client) handles() (out []*Handle) {
	for _, g := range c.owner.inOrder() {
		for _, h := range g.handles {
			if h.client.Load() == c && !h.wish().Once && !h.Status().Closed {
				out = append(out, h)
			}
		}
	}
	return out
}

// holds reports whether one of the client's handles holds an entry.
func (c *Client) holds(e *entry) bool {
	return slices.ContainsFunc(e.holders, func(h *Handle) bool { return h.sink == c.sink })
}

// InUse reports whether the client's handles are attached or have anything.
func (c *Client) InUse() (used bool) {
	c.owner.loop.Do(func() {
		used = c.busy > 0 || len(c.handles()) > 0
		for _, g := range c.owner.groups {
			used = used || slices.ContainsFunc(g.entries, c.holds)
		}
	})
	return used
}

// Answered returns when the gateway last answered a deletion.
func (c *Client) Answered() time.Time {
	return c.owner.start.Add(time.Duration(c.owner.answered.Load()))
}

// Close tries the pending deletions of the client once more, waits for all of its ops
// until ctx ends, and leaves the owner, which ends with its last client. It returns an
// error for each mapping that remains.
func (c *Client) Close(ctx context.Context) error {
	o, idle := c.owner, make(chan struct{})
	o.loop.Do(func() {
		o.retryNow(c)
		if c.busy == 0 {
			close(idle)
			return
		}
		c.idle = idle
	})
	select {
	case <-idle:
	case <-ctx.Done():
	}
	var err error
	o.loop.Do(func() { err = o.remaining(c, context.Cause(ctx)) })
	o.registry.leave(ctx, c)
	return err
}

// Abandon leaves the owner and whatever the client holds, as the end of the process
// would.
func (c *Client) Abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), retryTimeout)
	defer cancel()
	c.owner.loop.Do(func() { c.owner.abandon(c) })
	c.owner.registry.leave(ctx, c)
}
