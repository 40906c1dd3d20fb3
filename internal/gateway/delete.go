package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/internal/ctxsync"
	"github.com/natforward/goforward/internal/state"
)

// The pauses between attempts at a deletion double.
const (
	firstRetry   = time.Second
	longestRetry = time.Minute
	retryTimeout = time.Second // of an attempt, so that it does not hold up the others
	// firstTimeout is of the first attempt: longer than Close waits, and not as long as the
	// pauses of a connection that lost packets, since a new one may do better.
	firstTimeout = 3 * time.Second
)

// Closing is the end of a handle, and what came of it.
type Closing struct {
	Done chan struct{}
	Err  error // valid after Done
}

// BeginClose ends a handle, once: what it has is deleted, or left to its lifetime. It is
// called where the handle is attached.
func (h *Handle) BeginClose(leave bool) *Closing {
	closing := &Closing{Done: make(chan struct{})}
	if !h.closing.CompareAndSwap(nil, closing) {
		return h.closing.Load()
	}
	c := h.client.Load()
	if c == nil || !c.owner.loop.Do(func() { c.beginClose(h, closing, leave) }) {
		h.end()
		close(closing.Done)
	}
	return closing
}

// IsClosed reports whether BeginClose was called.
func (h *Handle) IsClosed() bool { return h.closing.Load() != nil }

// end makes a handle closed.
func (h *Handle) end() {
	h.leaveOthers(false)
	after := *h.status.Load()
	after.Closed, after.Granted, after.Next = true, nil, time.Time{}
	h.store(&after)
	if done := h.done.Swap(&ended); done != nil {
		close(*done)
	}
	if h.due = (time.Time{}); h.stop != nil {
		h.stop(ErrEnded)
	}
}

func (c *Client) beginClose(h *Handle, closing *Closing, leave bool) {
	granted := h.Status().Granted
	h.end()
	g := c.owner.groupOf(h.spec())
	g.handles = without(g.handles, h)
	if leave {
		g.leave(h, granted)
	}
	if len(g.heldBy(h)) == 0 && len(g.queue) == 0 {
		close(closing.Done)
		g.drop()
		return
	}
	c.owner.enqueue(&flow{group: g, client: c, priority: ctxsync.Delete, done: closing.Done, run: func(f *flow) {
		var errs []error
		for _, e := range slices.Clone(g.entries) { // what it held last
			if e.state == pendingDelete && e.end.last == h {
				errs = append(errs, f.delete(e, retryTimeout))
			}
		}
		closing.Err = errors.Join(append(errs, f.release(h))...)
	}})
}

// leave takes a handle off the holders of what was granted to it. What had no other is left
// to its lifetime. What is requested just now is not among that, and is deleted.
func (g *group) leave(h *Handle, granted []*backends.Mapping) {
	for _, e := range g.heldBy(h) {
		if e.end != nil || !slices.Contains(granted, e.granted) {
			continue
		}
		if e.holders = without(e.holders, h); len(e.holders) == 0 {
			e.remove()
		}
	}
}

// leaveOthers gives up what the handle has at gateways that are no longer its own. Moved
// says that it is granted here now.
func (h *Handle) leaveOthers(moved bool) {
	for _, old := range h.left {
		old.owner.loop.Post(func() {
			old.owner.enqueue(&flow{
				group: old.owner.groupOf(h.spec()), client: old, priority: ctxsync.Delete,
				run: func(f *flow) {
					for _, e := range f.group.heldBy(h) {
						if len(e.holders) == 1 {
							e.beginEnd(h)
							e.end.moved = moved
						}
					}
					_ = f.release(h)
					old.sink.RecordsChanged()
				},
			})
		})
	}
	h.left = nil
}

// heldBy returns the entries that a handle holds.
func (g *group) heldBy(h *Handle) []*entry {
	return slices.DeleteFunc(slices.Clone(g.entries), func(e *entry) bool { return !e.isHeldBy(h) })
}

// release gives up all that a handle has or may have at this gateway.
func (f *flow) release(h *Handle) error {
	if c := h.client.Load(); c != nil && c.owner == f.Owner { // else the handle is another owner's
		h.backend = nil
	}
	return f.giveUp(h, f.group.heldBy(h), min(h.spec().Timeout, firstTimeout))
}

// giveUp takes a handle off the holders of entries. The last one of an entry deletes it.
func (f *flow) giveUp(h *Handle, entries []*entry, timeout time.Duration) error {
	var errs []error
	for _, e := range entries {
		if e.holders = without(e.holders, h); len(e.holders) == 0 && e.state != removed {
			e.beginEnd(h)
			errs = append(errs, f.delete(e, timeout))
		}
	}
	return errors.Join(errs...)
}

// beginEnd records which handle was the last to hold an entry. Its client answers for that,
// unless another that is being closed does.
func (e *entry) beginEnd(h *Handle) {
	if e.end == nil {
		e.end = &ending{}
	}
	e.end.last = h
	if c := e.end.client; c != nil && c.closing {
		return
	}
	o := e.group.owner
	if i := slices.IndexFunc(o.joined, func(c *Client) bool { return c.isOwn(h) }); i >= 0 {
		e.end.client = o.joined[i]
	} else if e.end.client == nil {
		e.end.client = o.clientOf(e.backend)
	}
}

// resolve ends what was about to end an entry: it is deleted, or held again.
func (e *entry) resolve() {
	if e.end == nil {
		return
	}
	if e.end.client != nil {
		e.end.client.sink.RecordsChanged()
	}
	o := e.group.owner
	o.pending = without(o.pending, e)
	e.end = nil
}

var errRival = fmt.Errorf("%w: another backend holds the port", backends.ErrConflict)

// delete deletes an entry without holders. If it is not known whether the gateway has it,
// the same request is repeated first: its answer tells what to delete. If that is refused,
// what was requested is deleted.
func (f *flow) delete(e *entry, timeout time.Duration) error {
	m, unknown := e.granted, e.unknown
	switch {
	case len(e.holders) > 0 || e.state == removed:
		return nil
	case f.group.rival(e.backend.name, e.Member) != nil:
		f.pend(e, errRival)
		return nil
	case m == nil && !unknown:
		e.remove()
		return nil
	}
	request := e.spec.request(e.Member, e.asked)
	request.Exact = false // whatever the gateway has is to be deleted
	request.Lifetime = max(time.Until(e.until), time.Second)
	requested := e.requested(request)
	_, err := f.request(timeout, func(ctx context.Context) (backends.Mapping, error) {
		ctx = ctxsync.WithPriority(ctx, ctxsync.Delete)
		if unknown {
			switch again, err := e.backend.Map(ctx, request); {
			case err == nil:
				m = &again
			case m != nil: // this is deleted at least
			case requested != nil && f.isAnswer(err) && e.backend.Unmap(ctx, *requested) == nil:
				return again, nil
			default:
				return again, err
			}
		}
		return *m, e.backend.Unmap(ctx, *m)
	})
	return f.deleted(e, err)
}

// requested returns the mapping that a request may have created, to be deleted, or nil. A
// UPnP mapping is deleted by its external port, which may be another program's. So may be
// that of a ready-made backend, for which this host's address is not known.
func (e *entry) requested(r backends.Request) *backends.Mapping {
	local := e.group.owner.key.Local
	if to := r.Internal.Addr(); to.IsValid() && !to.IsUnspecified() {
		local = to
	}
	if !local.IsValid() || e.backend.name == upnp.Name {
		return nil
	}
	return &backends.Mapping{
		Backend: e.backend.name, Gateway: e.group.owner.key.Gateway, Protocol: r.Protocol,
		Internal: netip.AddrPortFrom(local, r.Internal.Port()), External: r.External, Remote: r.Remote,
	}
}

// deleted records what came of a deletion, and returns the error for what remains.
func (f *flow) deleted(e *entry, err error) error {
	if e.state == removed { // it ran out meanwhile
		return nil
	}
	answered := f.isAnswer(err)
	if answered {
		f.answered.Store(int64(time.Since(f.start)))
	}
	if err != nil {
		// After a second refusal, Close tries again, and else a timer once a day. What the
		// gateway may have for longer than is known is tried again as before.
		final := (e.state == pendingDelete || e.state == restored) && answered && e.granted != nil && !e.unknown
		remains := e.remains(err)
		if f.pend(e, err); final && e.end != nil {
			e.end.at = sooner(e.expires(), time.Now().Add(longestLease))
		}
		return remains
	}
	e.remove()
	for _, other := range f.group.entries { // the deletion may have broken them
		if other.isHeld() && !other.isOnce() {
			other.wanted = true
			f.group.enqueueWork()
		}
	}
	return nil
}

// pend makes a deletion be retried. What has run out meanwhile is removed.
func (o *Owner) pend(e *entry, err error) {
	e.state, e.err = pendingDelete, err
	now := time.Now()
	if slices.Contains(o.pending, e) {
		e.end.postpone(now)
	} else {
		o.pending = append(o.pending, e)
		e.end.pause, e.end.at = firstRetry, now.Add(firstRetry)
		if c := e.end.client; c != nil {
			c.sink.RecordsChanged()
			if c.closing {
				c.retryNow(e)
			}
		}
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
	var next time.Time
	for _, e := range o.pending {
		next = sooner(next, e.end.at)
	}
	if !o.retrying {
		o.loop.Arm(&o.retry, next)
	}
}

// retryDue attempts the deletions that are due, one at a time: a gateway that does not
// answer one is not asked for the others.
func (o *Owner) retryDue() {
	if o.retrying {
		return
	}
	now := time.Now()
	for _, e := range slices.Clone(o.pending) {
		switch {
		case e.isExpired(now) && len(e.holders) == 0:
			e.remove()
		case e.end.at.After(now):
		case len(e.holders) > 0: // about to be taken over
			e.end.at = now.Add(firstRetry)
		default:
			o.retrying = true
			o.enqueue(&flow{group: e.group, client: e.end.client, priority: ctxsync.Delete, run: func(f *flow) {
				err := f.delete(e, retryTimeout)
				if o.retrying = false; slices.Contains(o.pending, e) { // the others come first the next time
					o.pending = append(without(o.pending, e), e)
				}
				for _, other := range o.pending { // a ready-made backend is a gateway of its own
					if errors.Is(err, backends.ErrNoReply) && (other.backend == e.backend || e.backend.config.Ready == nil) {
						other.end.postpone(time.Now())
					}
				}
				o.retryDue()
			}})
			return
		}
	}
	o.armRetry()
}

// retryNow attempts a deletion once more, for which Close of the client waits.
func (c *Client) retryNow(e *entry) {
	if e.end.closing == c {
		return
	}
	e.end.closing = c
	c.owner.enqueue(&flow{group: e.group, client: c, priority: ctxsync.Delete, run: func(f *flow) {
		if e.state == pendingDelete && e.end.client == c { // else it has left meanwhile
			_ = f.delete(e, retryTimeout)
		}
	}})
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
	return &RemainsError{Protocol: e.Protocol, Port: e.requestedPort(), Until: e.expires(), Unknown: e.granted == nil, Err: err}
}

// remaining returns an error for each mapping of a client that is not deleted. What is in
// place at another gateway now is only logged.
func (o *Owner) remaining(c *Client, cause error) error {
	var errs []error
	for _, e := range o.all() {
		own := slices.IndexFunc(e.holders, c.isOwn)
		if own >= 0 && !slices.ContainsFunc(e.holders, func(h *Handle) bool { return !h.Status().Closed }) {
			e.beginEnd(e.holders[own])
		}
		switch {
		case e.end == nil || e.end.client != c || e.state == restored || e.isExpired(time.Now()):
		case e.granted == nil && e.order.born == 0 && e.end.last != nil && e.end.last.known: // another backend granted it
		case e.end.moved:
			slog.New(c.sink.Handler()).Warn("a mapping remains at a gateway that was left",
				"gateway", o.key.Gateway.Addr(), "err", e.remains(cmp.Or(e.err, cause)))
		case e.state == pendingDelete:
			errs = append(errs, e.remains(e.err))
		default: // its deletion is in flight or waits for its turn
			errs = append(errs, e.remains(cmp.Or(cause, backends.ErrNoReply)))
		}
	}
	return errors.Join(errs...)
}

// Records returns what the gateway has that no handle holds: what the client held last, and
// what it adopted.
func (c *Client) Records() (records []state.Record) {
	c.owner.loop.Do(func() { records = c.records() })
	return records
}

func (c *Client) records() (records []state.Record) {
	for _, e := range c.owner.all() {
		if e.end != nil && e.end.client == c && e.granted != nil {
			records = append(records, e.recordOf(*e.granted))
		}
	}
	return records
}

// abandon drops whatever a client holds or held last.
func (o *Owner) abandon(c *Client) {
	for _, e := range o.all() {
		e.holders = slices.DeleteFunc(e.holders, c.isOwn)
		if len(e.holders) == 0 && (e.end == nil || e.end.client == c) {
			e.remove()
		}
	}
}

// remainder is a deletion that an owner could not finish.
type remainder struct {
	config BackendConfig
	entry  entry
}

// remains returns the deletions that are not finished, by the owner that they are for.
func (o *Owner) remains() (out []endedOwner) {
	left := o.inherited
	for _, e := range o.all() {
		if e.end != nil && e.state != restored {
			old := entry{
				Member: e.Member, spec: e.spec, asked: e.asked, unknown: e.unknown, until: e.until, granted: e.granted,
				end: &ending{last: e.end.last},
			}
			if e.state == creating { // the request may be in flight
				old.noReply()
			}
			left = append(left, remainder{e.backend.config, old})
		}
	}
	for _, r := range left {
		key := o.key.of(r.config)
		i := slices.IndexFunc(out, func(e endedOwner) bool { return e.key == key })
		if i < 0 {
			i, out = len(out), append(out, endedOwner{key: key})
		}
		out[i].left = append(out[i].left, r)
	}
	return out
}

// inherit takes over a deletion of an ended owner, if the client has a backend for it.
func (c *Client) inherit(r remainder) bool {
	i := slices.IndexFunc(c.backends, func(b *Backend) bool { return b.config == r.config })
	if i < 0 {
		return false
	}
	e, g := r.entry, c.owner.groupOf(r.entry.spec)
	e.group, e.backend, e.end.client = g, c.backends[i], c
	c.owner.scattered = c.owner.scattered || e.spec.isScattered()
	others := g.entries
	if c.owner.scattered {
		others = c.owner.all()
	}
	for _, other := range others {
		if other.isSameAs(&e) { // as the gateway tells mappings apart
			other.mayBe(&e)
			g.drop()
			return true
		}
	}
	e.former = g.entry(e.backend.name, e.Member) != nil
	c.owner.pend(g.add(&e), backends.ErrNoReply)
	return true
}

// mayBe records that the gateway may have an entry already, as what is to be deleted. A
// grant takes its place.
func (e *entry) mayBe(old *entry) {
	if e.state == active {
		return
	}
	e.unknown = e.unknown || old.unknown || e.state == creating
	if old.until.After(e.until) {
		e.until = old.until
	}
	if m := old.granted; m != nil && (e.granted == nil || m.Granted.After(e.granted.Granted)) {
		e.granted = m
	}
}

// Adopt makes the owner answer for a mapping of an earlier run: it is taken over by the
// first request for the same, or deleted after a time. If two files have the same
// mapping, the newer grant wins. It returns false if the client has no such backend.
func (c *Client) Adopt(r state.Record, within time.Duration) (adopted bool) {
	c.owner.loop.Do(func() { adopted = c.adopt(r, within) })
	return adopted
}

func (c *Client) adopt(r state.Record, within time.Duration) bool {
	o, m := c.owner, &r.Mapping
	i := slices.IndexFunc(c.backends, func(b *Backend) bool { return b.name == m.Backend })
	if i < 0 {
		return false
	}
	internal := netip.AddrPortFrom(m.Internal.Addr(), r.Port)
	if !o.key.Local.IsValid() { // whether this is another host is not known
		internal = netip.AddrPortFrom(netip.Addr{}, r.Port)
	}
	s := &Spec{Internal: internal, Count: r.Count, External: m.External.Port(), Remote: m.Remote, Lifetime: m.Lifetime}
	member := Member{Protocol: m.Protocol}
	if r.Count > 1 {
		member.Offset = m.Internal.Port() - r.Port
	}
	g := o.groupOf(s)
	e := g.entry(m.Backend, member)
	switch {
	case e != nil && (e.state != restored || !m.Granted.After(e.granted.Granted)):
		if e.end != nil && e.end.client == nil {
			e.end.client = c
		}
		return true
	case e == nil:
		e = g.add(&entry{backend: c.backends[i], Member: member})
		o.pending = append(o.pending, e)
	}
	o.scattered = o.scattered || m.Internal.Port() != r.Port || s.isScattered()
	e.state, e.granted, e.asked, e.spec = restored, m, s.External, s
	now := time.Now()
	e.end = &ending{client: c, at: now.Add(within), pause: firstRetry}
	o.armRetry()
	return true
}
