package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/priority"
)

// The pauses between attempts at a deletion double.
const (
	firstRetry   = time.Second
	longestRetry = time.Minute
	retryTimeout = time.Second // of an attempt, so that it does not hold up the others
)

// Closing is a Close in flight, and what came of it.
type Closing struct {
	Done chan struct{}
	Err  error // valid after Done
}

// Closing returns the Close in flight or done, or nil.
func (h *Handle) Closing() *Closing { return h.closing.Load() }

// BeginClose ends a handle, once: what it has is deleted, or left to its lifetime. It is
// called where the handle is attached.
func (h *Handle) BeginClose(leave bool) {
	c := h.client.Load()
	if c == nil {
		h.beginClose()
		close(h.closing.Load().Done)
	} else if !c.owner.loop.Do(func() { c.beginClose(h, leave) }) {
		h.beginClose()
		close(h.closing.Load().Done)
	}
}

// leaveAll gives up what the handle has at other gateways.
func (h *Handle) leaveAll() {
	for _, old := range h.left {
		old.owner.loop.Post(func() { old.releaseLeft(h) })
	}
	h.left = nil
}

func (h *Handle) beginClose() {
	h.leaveAll()
	h.closing.Store(&Closing{Done: make(chan struct{})})
	after := *h.status.Load()
	after.Closed, after.Granted, after.Next = true, nil, time.Time{}
	h.status.Store(&after)
	h.notify()
	h.due = time.Time{}
	if h.stop != nil {
		h.stop(ErrEnded)
	}
}

func (c *Client) beginClose(h *Handle, leave bool) {
	h.beginClose()
	o, g, closing := c.owner, c.owner.groupOf(h.wish().Internal), h.closing.Load()
	g.handles = without(g.handles, h)
	if leave {
		for _, e := range slices.Clone(g.entries) {
			if slices.Contains(e.holders, h) {
				if e.holders = without(e.holders, h); len(e.holders) == 0 {
					e.remove()
				}
			}
		}
	}
	if !g.holds(h) && !g.busy {
		close(closing.Done)
		g.drop()
		return
	}
	o.enqueue(&op{
		group: g, client: c, priority: priority.Delete,
		run:   func(_ context.Context, p *op) { closing.Err = errors.Join(p.deletePending(h), p.release(h)) },
		after: func() { close(closing.Done) },
	})
}

// holds reports whether a handle holds an entry of the group.
func (g *group) holds(h *Handle) bool {
	return slices.ContainsFunc(g.entries, func(e *entry) bool { return slices.Contains(e.holders, h) })
}

// release gives up all that a handle has or may have.
func (p *op) release(h *Handle) error { return p.giveUp(h, p.held(h, false), h.wish().Timeout) }

// deletePending tries again to delete what a handle held last.
func (p *op) deletePending(h *Handle) error {
	var pending []*entry
	p.do(func() {
		for _, e := range p.group.entries {
			if e.state == pendingDelete && e.end.last == h {
				pending = append(pending, e)
			}
		}
	})
	var errs []error
	for _, e := range pending {
		errs = append(errs, p.delete(e, retryTimeout))
	}
	return errors.Join(errs...)
}

// held returns the entries that a handle holds, which it is about to give up: those that
// are granted, or all.
func (p *op) held(h *Handle, granted bool) (held []*entry) {
	p.do(func() {
		if p.has(h) {
			h.backend = nil
		}
		for _, e := range p.group.entries {
			if slices.Contains(e.holders, h) && (e.state == active || !granted) {
				held = append(held, e)
			}
		}
	})
	return held
}

// giveUp takes a handle off the holders of entries. The last one of an entry deletes it.
func (p *op) giveUp(h *Handle, entries []*entry, timeout time.Duration) error {
	var errs []error
	for _, e := range entries {
		last := false
		p.do(func() {
			e.holders = without(e.holders, h)
			if last = len(e.holders) == 0 && e.state != removed; last {
				e.beginEnd(h)
			}
		})
		if last {
			errs = append(errs, p.delete(e, timeout))
		}
	}
	return errors.Join(errs...)
}

// beginEnd records which handle was the last to hold an entry.
func (e *entry) beginEnd(h *Handle) {
	if e.end == nil {
		e.end = &ending{port: h.Port, since: time.Now()}
	}
	e.end.last = h
	for _, c := range e.group.owner.joined {
		if c.sink == h.sink {
			e.end.client = c
		}
	}
}

// resolve ends what was about to end an entry: it is deleted, or held again.
func (e *entry) resolve() {
	if e.end == nil {
		return
	}
	if c, m := e.end.client, e.end.told; c != nil && m != nil {
		c.sink.Settled(*m)
	}
	o := e.group.owner
	o.unsettled = without(o.unsettled, e)
	e.end = nil
}

// delete deletes an entry without holders. If it is not known whether the gateway has it,
// the same request is repeated first: its answer tells what to delete.
func (p *op) delete(e *entry, timeout time.Duration) (err error) {
	var (
		m       *backends.Mapping
		unknown bool
		request backends.Request
	)
	p.do(func() {
		switch {
		case len(e.holders) > 0 || e.state == removed:
		case p.group.rival(e.backend.name, e.protocol) != nil:
			p.pend(e, errRival)
		case e.granted == nil && !e.unknown:
			e.resolve()
			e.remove()
		default:
			m, unknown, request = e.granted, e.unknown, e.params.Request(e.protocol, e.asked)
			request.Exact = false // whatever the gateway has is to be deleted
		}
	})
	if m == nil && !unknown {
		return nil
	}
	ctx, cancel := bound(priority.With(p.ctx, priority.Delete), timeout)
	defer cancel()
	if unknown {
		again, mapErr := e.backend.Map(ctx, request)
		if mapErr == nil {
			m = &again
		}
		err = mapErr
	}
	if m != nil {
		err = e.backend.Unmap(ctx, *m)
	}
	p.do(func() { err = p.deleted(e, err) })
	return err
}

var errRival = fmt.Errorf("%w: another backend holds the port", backends.ErrConflict)

// deleted records what came of a deletion, and returns the error for what remains.
func (p *op) deleted(e *entry, err error) error {
	if e.state == removed { // it ran out meanwhile
		return nil
	}
	answered := p.answers(err)
	if answered {
		p.answered.Store(int64(time.Since(p.start)))
	}
	// A second refusal is final, but not that of a request which is repeated to find out.
	final := (e.state == pendingDelete || e.state == restored) && answered && e.granted != nil
	if err != nil && !final {
		p.pend(e, err)
		return e.remains(err)
	}
	if err != nil {
		e.end.told = nil // the next run may try again
	}
	e.resolve()
	e.remove()
	for _, other := range p.group.entries { // the deletion may have broken them
		if other.state == active && len(other.holders) > 0 && !other.once() {
			other.wanted = true
			p.enqueueWork(p.group)
		}
	}
	return nil
}

// pend makes a deletion be retried.
func (o *Owner) pend(e *entry, err error) {
	e.state, e.err = pendingDelete, err
	now := time.Now()
	if !slices.Contains(o.unsettled, e) {
		o.unsettled = append(o.unsettled, e)
		e.end.pause, e.end.since, e.end.at = firstRetry, now, now.Add(firstRetry)
		c := e.end.client
		if c != nil && e.granted != nil {
			e.end.told = e.granted
			c.sink.Remains(e.end.port, *e.granted)
		}
		if c != nil && c.idle != nil { // it is being closed, and waits for this
			e.end.at = now
			o.loop.Post(o.retryDue)
		}
	} else {
		e.end.postpone(now)
	}
	o.armRetry()
}

// postpone puts off an attempt that is due.
func (e *ending) postpone(now time.Time) {
	if !e.at.After(now) {
		e.pause = min(2*e.pause, longestRetry)
		e.at = now.Add(e.pause)
	}
}

func (o *Owner) armRetry() {
	if !o.retrying && len(o.unsettled) > 0 {
		next := slices.MinFunc(o.unsettled, func(a, b *entry) int { return a.end.at.Compare(b.end.at) })
		o.loop.Arm(&o.retry, next.end.at)
	}
}

// retryNow attempts the deletions of a client now.
func (o *Owner) retryNow(c *Client) {
	for _, e := range o.unsettled {
		if e.end.client == c && e.state == pendingDelete {
			e.end.at = time.Now()
		}
	}
	o.retryDue()
}

// retryDue attempts the deletions that are due, one at a time: a gateway that does not
// answer one is not asked for the others.
func (o *Owner) retryDue() {
	if o.retrying {
		return
	}
	now := time.Now()
	for _, e := range slices.Clone(o.unsettled) {
		switch {
		case e.expired(now) && len(e.holders) == 0:
			e.resolve()
			e.remove()
		case e.end.at.After(now):
		case len(e.holders) > 0: // about to be taken over
			e.end.at = now.Add(firstRetry)
		default:
			o.retrying = true
			o.enqueue(&op{
				group: e.group, client: e.end.client, priority: priority.Delete,
				run: func(_ context.Context, p *op) {
					err := p.delete(e, retryTimeout)
					p.do(func() {
						o.retrying = false
						if errors.Is(err, backends.ErrNoReply) {
							for _, other := range o.unsettled {
								other.end.postpone(time.Now())
							}
						}
						o.retryDue()
					})
				},
			})
			return
		}
	}
	o.armRetry()
}

// RemainsError says that a mapping remains on the gateway until its lifetime ends.
type RemainsError struct {
	Protocol backends.Protocol
	Port     uint16    // the internal port
	Until    time.Time // zero: not known, or no end
	Unknown  bool      // a request got no reply: the gateway may have it or not
	Err      error
}

func (e *RemainsError) Error() string {
	remains, until := "remains", "its lifetime ends"
	if e.Unknown {
		remains = "may remain"
	}
	if !e.Until.IsZero() {
		until = e.Until.Format(time.TimeOnly) + ", when its lifetime ends"
	}
	return fmt.Sprintf("%v port %d %s on the gateway until %s: %v", e.Protocol, e.Port, remains, until, e.Err)
}

func (e *RemainsError) Unwrap() error { return e.Err }

// remains returns the error for a mapping whose deletion failed.
func (e *entry) remains(err error) error {
	r := &RemainsError{Protocol: e.protocol, Port: e.end.port, Unknown: e.granted == nil, Err: err}
	if e.granted != nil {
		r.Until = e.granted.Expires()
	}
	return r
}

// remaining returns an error for each mapping of a client that is not deleted.
func (o *Owner) remaining(c *Client, cause error) error {
	var errs []error
	for _, g := range o.inOrder() {
		for _, e := range g.entries {
			closed := func(h *Handle) bool { return h.sink == c.sink && h.Status().Closed }
			if len(e.holders) > 0 && !slices.ContainsFunc(e.holders, func(h *Handle) bool { return !closed(h) }) {
				e.beginEnd(e.holders[0])
			}
			switch {
			case e.end == nil || e.end.client != c || e.state == restored || e.expired(time.Now()):
			case e.granted == nil && (e.end.last == nil || e.end.last.known): // another backend granted it
			case e.state == pendingDelete:
				errs = append(errs, e.remains(e.err))
			default: // its deletion is in flight or waits for its turn
				errs = append(errs, e.remains(cause))
				if e.granted != nil {
					c.sink.Remains(e.end.port, *e.granted)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// abandon drops whatever a client holds or held last.
func (o *Owner) abandon(c *Client) {
	for _, g := range o.inOrder() {
		for _, e := range slices.Clone(g.entries) {
			e.holders = slices.DeleteFunc(e.holders, func(h *Handle) bool { return h.sink == c.sink })
			if len(e.holders) == 0 && (e.end == nil || e.end.client == c) {
				if e.end != nil {
					e.end.told = nil
				}
				e.resolve()
				e.remove()
			}
		}
	}
}

// remains is a deletion that an owner could not finish, as data.
type remains struct {
	spec     Spec
	protocol backends.Protocol
	params   *Params
	asked    uint16
	unknown  bool
	granted  *backends.Mapping
}

// remains returns the deletions that are not finished.
func (o *Owner) remains() (out []remains) {
	for _, g := range o.inOrder() {
		for _, e := range g.entries {
			if e.end != nil && e.state != restored {
				out = append(out, remains{e.backend.spec, e.protocol, e.params, e.asked, e.unknown || e.state == creating, e.granted})
			}
		}
	}
	return append(out, o.inherited...)
}

// resume takes over the deletions of an ended owner that a client has a backend for.
func (o *Owner) resume(c *Client) {
	var left []remains
	for _, r := range o.inherited {
		i := slices.IndexFunc(c.backends, func(b *Backend) bool { return b.spec == r.spec })
		if i < 0 {
			left = append(left, r)
		} else if g := o.groupOf(r.params.Internal); g.entry(c.backends[i].name, r.protocol) == nil {
			e := &entry{
				group: g, backend: c.backends[i], protocol: r.protocol, params: r.params, asked: r.asked, unknown: r.unknown,
				granted: r.granted, end: &ending{client: c, port: r.params.Internal.Port()},
			}
			g.entries = append(g.entries, e)
			o.pend(e, backends.ErrNoReply)
		}
	}
	o.inherited = left
}

// Adopt makes the owner answer for a mapping of an earlier run: it is taken over by the
// first request for the same, or deleted after a time. If two files have the same
// mapping, the newer grant wins. It returns false if the client has no such backend.
func (c *Client) Adopt(port uint16, m backends.Mapping, within time.Duration) (adopted bool) {
	c.owner.loop.Do(func() { adopted = c.owner.adopt(c, port, m, within) })
	return adopted
}

func (o *Owner) adopt(c *Client, port uint16, m backends.Mapping, within time.Duration) bool {
	i := slices.IndexFunc(c.backends, func(b *Backend) bool { return b.name == m.Backend })
	if i < 0 {
		return false
	}
	internal := netip.AddrPortFrom(m.Internal.Addr(), port)
	if !o.key.Local.IsValid() { // whether this is another host is not known
		internal = netip.AddrPortFrom(netip.Addr{}, port)
	}
	g := o.groupOf(internal)
	e := g.entry(m.Backend, m.Protocol)
	switch {
	case e == nil:
		e = &entry{group: g, backend: c.backends[i], protocol: m.Protocol}
		g.entries = append(g.entries, e)
	case e.state != restored || !m.Granted.After(e.granted.Granted):
		return true
	}
	e.state, e.granted, e.asked = restored, &m, m.External.Port()
	e.params = &Params{Internal: internal, External: m.External.Port(), Remote: m.Remote, Lifetime: m.Lifetime}
	if e.end == nil {
		o.unsettled = append(o.unsettled, e)
	}
	now := time.Now()
	e.end = &ending{client: c, port: port, since: now, at: now.Add(within), pause: firstRetry, told: &m}
	o.armRetry()
	return true
}
