package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/internal/priority"
)

// oneOfSeveral bounds how long one backend is waited for while there are others to ask.
const oneOfSeveral = 4 * time.Second

// ensure requests a handle anew. What it has and does not fit together goes first.
func (p *op) ensure(flow context.Context, h *Handle, reason string) error {
	_ = p.giveUp(h, p.held(h, true), retryTimeout)
	err := p.establish(flow, h, h.wish(), reason)
	if err != nil {
		p.do(func() { p.fail(h, err) })
	}
	return err
}

// fail records that a request came to nothing, and when the next comes.
func (p *op) fail(h *Handle, err error) {
	if !p.has(h) || h.Status().Closed || h.unusable {
		return
	}
	h.failures++
	if h.due = time.Now().Add(Backoff(h.failures, err, p.registry.jitter)); h.wish().Once {
		h.due = time.Time{}
	}
	h.publish(func(s *Status) { s.Granted, s.Err, s.Next = nil, err, h.due }, err.Error())
	slog.New(h.sink.Handler()).Warn("mapping not granted", "port", h.Port, "err", err)
}

// replace requests another wish in place of what a handle has, or has it back.
func (p *op) replace(flow context.Context, h *Handle, w *Wish) error {
	var port uint16
	p.do(func() {
		if !p.has(h) {
			return
		}
		if h.backend == nil {
			h.preferred = 0
		}
		port, h.preferred = h.preferred, 0
	})
	_ = p.release(h)
	err := p.establish(flow, h, w, "refreshed")
	if err != nil && (port == 0 || flow.Err() != nil) {
		p.do(func() { p.fail(h, err) })
	}
	if err == nil || port == 0 || flow.Err() != nil {
		return err
	}
	p.do(func() {
		if p.has(h) {
			h.preferred = port
		}
	})
	if back := p.ensure(flow, h, "refreshed"); back != nil {
		err = errors.Join(err, errors.New("and the mapping as it was cannot be had back: "+back.Error()))
	}
	return err
}

// establish requests what a handle wants from the first backend that can and will.
func (p *op) establish(flow context.Context, h *Handle, w *Wish, reason string) error {
	c := h.client.Load()
	if !p.has(h) {
		return ErrMoved
	}
	if err := c.Probe(flow, w.Wait); err != nil {
		return err
	}
	var (
		failures  []error
		preferred uint16
	)
	p.do(func() { preferred = h.preferred })
	silent := true
	candidates := c.candidates(p.group, w)
	for i, b := range candidates {
		if len(failures) > 0 && flow.Err() != nil {
			break // it would only seem to be silent
		}
		last := !slices.ContainsFunc(candidates[i+1:], func(c candidate) bool { return c.hopeful })
		err := p.tryBackend(flow, c, h, b, w, preferred, last)
		if err == nil {
			return p.settle(c, h, b.Backend, w, reason)
		}
		if flow.Err() != nil && !IsTimeout(flow) {
			return err
		}
		silent = silent && errors.Is(err, backends.ErrNoReply)
		failures = append(failures, err)
		if ours := (*ConflictError)(nil); errors.As(err, &ours) {
			break
		}
	}
	if silent {
		c.Forget()
	}
	return c.sink.Failure(failures, false)
}

// settle publishes what a handle was granted, and gives up what it has elsewhere. What
// the gateway lost meanwhile is requested again.
func (p *op) settle(c *Client, h *Handle, b *Backend, w *Wish, reason string) error {
	var others []*entry
	moved := true
	p.do(func() {
		if moved = h.client.Load() != c; moved {
			return
		}
		h.backend, h.failures, h.due, h.lostAt = b, 0, time.Time{}, time.Time{}
		for _, e := range p.group.entries {
			if e.backend != b && slices.Contains(e.holders, h) {
				others = append(others, e)
			}
		}
		if w != h.wish() {
			h.publish(func(s *Status) { s.Wish = w }, "")
		}
	})
	if moved {
		_ = p.release(h) // its deletion is retried
		return ErrMoved
	}
	stands := true
	p.do(func() {
		p.refresh(h, reason)
		h.leaveAll()
		stands = h.Status().Stands()
	})
	_ = p.giveUp(h, others, retryTimeout)
	if !stands { // it was lost again meanwhile
		p.do(func() { h.reason = reason })
		p.pass(p.ctx)
	}
	return nil
}

// tryBackend asks one backend, if it can express the wish and its gateway answers.
func (p *op) tryBackend(flow context.Context, c *Client, h *Handle, b candidate, w *Wish, preferred uint16, last bool) error {
	if preferred == 0 && w.External == 0 {
		preferred = b.restored
	}
	port := w.firstPort(preferred)
	for _, protocol := range w.Protocols {
		if err := b.Supports(w.Request(protocol, port)); err != nil {
			return err
		}
	}
	timeout := w.Timeout
	if at, has := flow.Deadline(); has {
		timeout = max(timeout, time.Until(at)+lateReply)
	}
	if !last {
		share := oneOfSeveral
		if at, has := flow.Deadline(); has {
			share = min(share, time.Until(at)/2)
		}
		timeout = share
	}
	if err := c.Ensure(flow, b.Backend, min(w.Wait, timeout)); err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		err := p.mapAll(flow, h, b.Backend, w, port, timeout)
		if err == nil {
			return nil
		}
		var other bool
		if port, other = w.nextPort(port, attempt, err); !other || flow.Err() != nil {
			return err
		}
	}
}

// lateReply is how long a request goes on after its caller's deadline, so that a late
// reply is not lost.
const lateReply = time.Second

// mapAll asks one backend for all protocols of the wish at one external port, and gives
// back what it got if it did not get all.
func (p *op) mapAll(flow context.Context, h *Handle, b *Backend, w *Wish, port uint16, timeout time.Duration) error {
	var (
		got     []*entry
		granted []*backends.Mapping
	)
	for _, protocol := range w.Protocols {
		e, err := p.acquire(flow, h, b, w, protocol, port, timeout)
		if err == nil {
			got, granted = append(got, e), append(granted, e.granted)
			err = w.checkPorts(granted)
		}
		if err != nil {
			if left := p.giveUp(h, got, retryTimeout); left != nil {
				p.log().Warn("a mapping of a failed attempt remains for now", "err", left)
			}
			return err
		}
		port = granted[0].External.Port()
	}
	return nil
}

// acquire makes a handle hold an entry, and requests that.
func (p *op) acquire(flow context.Context, h *Handle, b *Backend, w *Wish, protocol backends.Protocol, port uint16, timeout time.Duration) (e *entry, err error) {
	var (
		call   func(context.Context) (backends.Mapping, error)
		before request
	)
	err = ErrEnded
	p.do(func() {
		if err = context.Cause(flow); err == nil {
			e, err = p.group.hold(h, b, w, protocol)
		}
		if err == nil && p.isElsewhere(p.group, protocol, w.Request(protocol, port).Internal.Port()) {
			e.holders = without(e.holders, h)
			if len(e.holders) == 0 && e.state == creating && !e.unknown {
				e.remove()
			}
			err = fmt.Errorf("%w: this program holds internal port %d", backends.ErrConflict, port)
		}
		if err == nil {
			if e.unknown && e.granted == nil && !e.isReplacedBy(w.Request(protocol, port).Internal.Port(), port, e.internal(), e.asked) {
				p.split(e)
			}
			before = request{e.params, e.asked}
			e.params, e.asked = &w.Params, port
			call = e.request(w, port)
		}
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := bound(p.requests, timeout)
	p.inFlight.Store(true)
	m, err := call(ctx)
	p.inFlight.Store(false)
	cancel()
	if err == nil {
		p.do(func() { p.granted(h, e, &m) })
	} else {
		p.do(func() { p.refused(h, e, before, err) })
	}
	if err == nil {
		err = context.Cause(flow) // what was granted is given up by the caller of this
		if err != nil {
			_ = p.giveUp(h, []*entry{e}, w.Timeout)
		}
	}
	return e, err
}

// isElsewhere reports whether another group has an entry of a protocol and internal port:
// that of SamePort follows the external port.
func (o *Owner) isElsewhere(g *group, protocol backends.Protocol, internal uint16) bool {
	if !o.samePort && internal == g.internal.Port() {
		return false
	}
	for _, other := range o.groups {
		for _, e := range other.entries {
			if other != g && e.protocol == protocol && e.internal() == internal && other.internal.Addr() == g.internal.Addr() {
				return true
			}
		}
	}
	return false
}

// request is what an entry was requested with.
type request struct {
	params *Params
	asked  uint16
}

// hold adds a handle to the holders of the entry of a backend and protocol.
func (g *group) hold(h *Handle, b *Backend, w *Wish, protocol backends.Protocol) (*entry, error) {
	if rival := g.rival(b.name, protocol); rival != nil {
		return nil, &ConflictError{protocol, h.Port, rival.backend.name}
	}
	e := g.entry(b.name, protocol)
	if e == nil {
		e = &entry{group: g, backend: b, protocol: protocol}
		g.entries = append(g.entries, e)
	}
	for _, other := range e.holders {
		if other != h && !e.params.SameTerms(&w.Params) {
			return nil, &ConflictError{Protocol: protocol, Port: h.Port}
		}
	}
	if !slices.Contains(e.holders, h) {
		e.holders = append(e.holders, h)
	}
	return e, nil
}

// request returns what to call for an entry: what the gateway has is renewed in place,
// also what an earlier run left. If that does not fit, it is deleted first.
func (e *entry) request(w *Wish, external uint16) func(context.Context) (backends.Mapping, error) {
	b, old, r := e.backend.Backend, e.granted, w.Request(e.protocol, external)
	create := func(ctx context.Context) (backends.Mapping, error) { return b.Map(ctx, r) }
	switch {
	case e.state == active:
		return func(ctx context.Context) (backends.Mapping, error) { return b.Renew(ctx, *old, r) }
	case e.state != restored:
		return create
	case fits(old, &w.Params) && external == old.External.Port():
		return func(ctx context.Context) (backends.Mapping, error) {
			m, err := b.Renew(ctx, *old, r)
			if err == nil || ctx.Err() != nil {
				return m, err
			}
			return create(ctx)
		}
	}
	return func(ctx context.Context) (backends.Mapping, error) {
		_ = b.Unmap(ctx, *old) // if something remains that is in the way, Map tells
		return create(ctx)
	}
}

// granted records the grant of an acquire.
func (p *op) granted(h *Handle, e *entry, m *backends.Mapping) {
	e.recordGrant(m, e.state != active)
	if old := e.granted; e.end != nil && old != nil && !e.isReplacedBy(m.Internal.Port(), m.External.Port(), old.Internal.Port(), old.External.Port()) {
		p.split(e)
	}
	e.resolve()
	e.state = active
	p.samePort = p.samePort || m.Internal.Port() != p.group.internal.Port()
	e.record(m)
	p.watch(e.backend)
	for _, other := range e.holders {
		if other != h {
			p.refresh(other, "")
		}
	}
}

// isReplacedBy reports whether a grant takes the place of an earlier one, by internal and
// external port. UPnP identifies a mapping by its external port, NAT-PMP and PCP by its
// internal one.
func (e *entry) isReplacedBy(internal, external, oldInternal, oldExternal uint16) bool {
	if e.backend.name == upnp.Name {
		return external == oldExternal
	}
	return internal == oldInternal
}

// split keeps apart what an entry was before it is requested as another mapping, to be
// deleted.
func (p *op) split(e *entry) {
	old := *e
	old.former, old.holders = true, nil
	if old.end == nil {
		old.end = &ending{port: e.group.internal.Port()}
		for _, h := range e.holders {
			old.beginEnd(h)
		}
	}
	p.unsettled, e.end, e.unknown = without(p.unsettled, e), nil, false
	p.group.entries = append(p.group.entries, &old)
	p.pend(&old, backends.ErrNoReply)
}

// record applies the answer to a request that was granted.
func (e *entry) record(m *backends.Mapping) {
	e.granted, e.err, e.failures, e.unknown = m, nil, 0, false
	e.lost, e.doubtful, e.wanted = false, false, false
	now := time.Now()
	e.due = e.next(now)
	if lost := e.backend.lost; e.again || !lost.IsZero() && m.Granted.Before(lost) {
		e.again, e.doubtful, e.due = false, true, now
	}
}

// refused records that the request of an acquire failed. Without a reply the gateway may
// have granted it: a handle that will try again keeps the entry.
func (p *op) refused(h *Handle, e *entry, before request, err error) {
	answered := p.answers(err)
	keeps := h.known || h.wish().Background
	if answered {
		if keeps {
			p.watch(e.backend) // it may announce that it can now
		}
		if e.unknown || e.state == active { // what was requested before counts
			e.params, e.asked = before.params, before.asked
		}
	} else {
		e.unknown = e.unknown || e.state != active
		if keeps {
			return
		}
	}
	e.holders = without(e.holders, h)
	if len(e.holders) > 0 || e.state == active {
		return
	}
	if e.state == creating && !e.unknown {
		e.remove()
		return
	}
	e.beginEnd(h)
	p.pend(e, err)
}

// releaseLeft gives up what a handle has at a gateway that is no longer its own.
func (c *Client) releaseLeft(h *Handle) {
	c.owner.enqueue(&op{
		group: c.owner.groupOf(h.wish().Internal), client: c, priority: priority.Delete,
		run:   func(_ context.Context, p *op) { _ = p.release(h) },
		after: c.sink.Left,
	})
}

// Fail records why a handle that is attached to nothing cannot be requested, and when that
// is tried next.
func (h *Handle) Fail(err error, next time.Time) {
	if h.client.Load() == nil {
		h.publish(func(s *Status) { s.Err, s.Next = err, next }, err.Error())
	}
}
