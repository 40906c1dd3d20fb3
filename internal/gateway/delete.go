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
	firstDeleteBackoff = time.Second
	maxDeleteBackoff   = time.Minute
	deleteRetryTimeout = time.Second // of an attempt, so that it does not hold up the others
	// firstTimeout is of the first attempt: longer than Close waits, and not as long as the
	// pauses of a connection that lost packets, since a new one may do better.
	firstDeleteTimeout = 3 * time.Second
)

// Closing is the end of a handle, and what came of it.
type Closing struct {
	Done chan struct{}
	Err  error // valid after Done
}

// BeginClose ends a handle, once: what it has is deleted, or left to its lifetime. It is
// called where the handle is attached.
func (h *Handle) BeginClose(keepOnGateway bool) *Closing {
	closing := &Closing{Done: make(chan struct{})}
	if !h.closing.CompareAndSwap(nil, closing) {
		return h.closing.Load()
	}
	c := h.client.Load()
	if c == nil || !c.owner.loop.Do(func() { c.beginClose(h, closing, keepOnGateway) }) {
		h.markClosed()
		close(closing.Done)
	}
	return closing
}

// IsClosed reports whether BeginClose was called.
func (h *Handle) IsClosed() bool { return h.closing.Load() != nil }

// end makes a handle closed.
func (h *Handle) markClosed() {
	h.releaseOldGateways(false)
	after := *h.status.Load()
	after.Closed, after.Granted, after.NextRequest = true, nil, time.Time{}
	h.store(&after)
	if done := h.done.Swap(&closedChan); done != nil {
		close(*done)
	}
	if h.nextRequest = (time.Time{}); h.cancel != nil {
		h.cancel(ErrEnded)
	}
}

func (c *Client) beginClose(h *Handle, closing *Closing, keepOnGateway bool) {
	granted := h.Status().Granted
	h.markClosed()
	g := c.owner.groupOf(h.spec())
	g.handles = without(g.handles, h)
	if keepOnGateway {
		g.leaveToExpire(h, granted)
	}
	if len(g.heldBy(h)) == 0 && len(g.queue) == 0 {
		close(closing.Done)
		g.deleteIfEmpty()
		return
	}
	c.owner.enqueue(&flow{group: g, client: c, priority: ctxsync.Delete, done: closing.Done, run: func(f *flow) {
		var errs []error
		for _, e := range slices.Clone(g.entries) { // what it held last
			if e.state == pendingDelete && e.deletion.lastHolder == h {
				errs = append(errs, f.delete(e, deleteRetryTimeout))
			}
		}
		closing.Err = errors.Join(append(errs, f.releaseAll(h))...)
	}})
}

// leave takes a handle off the holders of what was granted to it. What had no other is left
// to its lifetime. What is requested just now is not among that, and is deleted.
func (g *group) leaveToExpire(h *Handle, granted []*backends.Mapping) {
	for _, e := range g.heldBy(h) {
		if e.deletion != nil || !slices.Contains(granted, e.granted) {
			continue
		}
		if e.holders = without(e.holders, h); len(e.holders) == 0 {
			e.remove()
		}
	}
}

// leaveOthers gives up what the handle has at gateways that are no longer its own. Moved
// says that it is granted here now.
func (h *Handle) releaseOldGateways(moved bool) {
	for _, old := range h.oldClients {
		old.owner.loop.Post(func() {
			old.owner.enqueue(&flow{
				group: old.owner.groupOf(h.spec()), client: old, priority: ctxsync.Delete,
				run: func(f *flow) {
					for _, e := range f.group.heldBy(h) {
						if len(e.holders) == 1 {
							e.beginDeletion(h)
							e.deletion.moved = moved
						}
					}
					_ = f.releaseAll(h)
					old.sink.RecordsChanged()
				},
			})
		})
	}
	h.oldClients = nil
}

// heldBy returns the entries that a handle holds.
func (g *group) heldBy(h *Handle) []*entry {
	return slices.DeleteFunc(slices.Clone(g.entries), func(e *entry) bool { return !e.isHeldBy(h) })
}

// release gives up all that a handle has or may have at this gateway.
func (f *flow) releaseAll(h *Handle) error {
	if c := h.client.Load(); c != nil && c.owner == f.Owner { // else the handle is another owner's
		h.backend = nil
	}
	return f.releaseEntries(h, f.group.heldBy(h), min(h.spec().RequestTimeout, firstDeleteTimeout))
}

// giveUp takes a handle off the holders of entries. The last one of an entry deletes it.
func (f *flow) releaseEntries(h *Handle, entries []*entry, timeout time.Duration) error {
	var errs []error
	for _, e := range entries {
		if e.holders = without(e.holders, h); len(e.holders) == 0 && e.state != removed {
			e.beginDeletion(h)
			errs = append(errs, f.delete(e, timeout))
		}
	}
	return errors.Join(errs...)
}

// beginEnd records which handle was the last to hold an entry. Its client answers for that,
// unless another that is being closed does.
func (e *entry) beginDeletion(h *Handle) {
	if e.deletion == nil {
		e.deletion = &deletion{}
	}
	e.deletion.lastHolder = h
	if c := e.deletion.client; c != nil && c.closing {
		return
	}
	o := e.group.owner
	if i := slices.IndexFunc(o.clients, func(c *Client) bool { return c.owns(h) }); i >= 0 {
		e.deletion.client = o.clients[i]
	} else if e.deletion.client == nil {
		e.deletion.client = o.clientOf(e.backend)
	}
}

// resolve ends what was about to end an entry: it is deleted, or held again.
func (e *entry) clearDeletion() {
	if e.deletion == nil {
		return
	}
	if e.deletion.client != nil {
		e.deletion.client.sink.RecordsChanged()
	}
	o := e.group.owner
	o.pendingDeletes = without(o.pendingDeletes, e)
	e.deletion = nil
}

var errOtherBackend = fmt.Errorf("%w: another backend holds the port", backends.ErrConflict)

// delete deletes an entry without holders. If it is not known whether the gateway has it,
// the same request is repeated first: its answer tells what to delete. If that is refused,
// what was requested is deleted.
func (f *flow) delete(e *entry, timeout time.Duration) error {
	m, unconfirmed := e.granted, e.unconfirmed
	switch {
	case len(e.holders) > 0 || e.state == removed:
		return nil
	case f.group.heldByOtherBackend(e.backend.name, e.Member) != nil:
		f.addPendingDelete(e, errOtherBackend)
		return nil
	case m == nil && !unconfirmed:
		e.remove()
		return nil
	}
	request := e.spec.request(e.Member, e.requestedExternal)
	request.Exact = false // whatever the gateway has is to be deleted
	request.Lifetime = max(time.Until(e.unconfirmedUntil), time.Second)
	assumed := e.assumedMapping(request)
	_, err := f.request(timeout, func(ctx context.Context) (backends.Mapping, error) {
		ctx = ctxsync.WithPriority(ctx, ctxsync.Delete)
		if unconfirmed {
			switch repeated, err := e.backend.Map(ctx, request); {
			case err == nil:
				m = &repeated
			case m != nil: // this is deleted at least
			case assumed != nil && f.isReply(err) && e.backend.Unmap(ctx, *assumed) == nil:
				return repeated, nil
			default:
				return repeated, err
			}
		}
		return *m, e.backend.Unmap(ctx, *m)
	})
	return f.recordDeletion(e, err)
}

// requested returns the mapping that a request may have created, to be deleted, or nil. A
// UPnP mapping is deleted by its external port, which may be another program's. So may be
// that of a ready-made backend, for which this host's address is not known.
func (e *entry) assumedMapping(r backends.Request) *backends.Mapping {
	local := e.group.owner.key.Local
	if addr := r.Internal.Addr(); addr.IsValid() && !addr.IsUnspecified() {
		local = addr
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
func (f *flow) recordDeletion(e *entry, err error) error {
	if e.state == removed { // it ran out meanwhile
		return nil
	}
	answered := f.isReply(err)
	if answered {
		f.answered.Store(int64(time.Since(f.start)))
	}
	if err != nil {
		// After a second refusal, Close tries again, and else a timer once a day. What the
		// gateway may have for longer than is known is tried again as before.
		final := (e.state == pendingDelete || e.state == restored) && answered && e.granted != nil && !e.unconfirmed
		remains := e.remainsError(err)
		if f.addPendingDelete(e, err); final && e.deletion != nil {
			e.deletion.nextAttempt = earlier(e.expires(), time.Now().Add(maxLifetime))
		}
		return remains
	}
	e.remove()
	for _, other := range f.group.entries { // the deletion may have broken them
		if other.isHeld() && !other.isOnce() {
			other.mustRenew = true
			f.group.enqueueRenewals()
		}
	}
	return nil
}

// pend makes a deletion be retried. What has run out meanwhile is removed.
func (o *Owner) addPendingDelete(e *entry, err error) {
	e.state, e.err = pendingDelete, err
	now := time.Now()
	if slices.Contains(o.pendingDeletes, e) {
		e.deletion.postpone(now)
	} else {
		o.pendingDeletes = append(o.pendingDeletes, e)
		e.deletion.pause, e.deletion.nextAttempt = firstDeleteBackoff, now.Add(firstDeleteBackoff)
		if c := e.deletion.client; c != nil {
			c.sink.RecordsChanged()
			if c.closing {
				c.retryNow(e)
			}
		}
	}
	o.armRetryTimer()
}

// postpone puts off an attempt that is due.
func (d *deletion) postpone(now time.Time) {
	if !d.nextAttempt.After(now) {
		d.pause = min(2*d.pause, maxDeleteBackoff)
		d.nextAttempt = now.Add(d.pause)
	}
}

func (o *Owner) armRetryTimer() {
	var next time.Time
	for _, e := range o.pendingDeletes {
		next = earlier(next, e.deletion.nextAttempt)
	}
	if !o.retryRunning {
		o.loop.Arm(&o.retryTimer, next)
	}
}

// retryDue attempts the deletions that are due, one at a time: a gateway that does not
// answer one is not asked for the others.
func (o *Owner) retryDeletes() {
	if o.retryRunning {
		return
	}
	now := time.Now()
	for _, e := range slices.Clone(o.pendingDeletes) {
		switch {
		case e.isExpired(now) && len(e.holders) == 0:
			e.remove()
		case e.deletion.nextAttempt.After(now):
		case len(e.holders) > 0: // about to be taken over
			e.deletion.nextAttempt = now.Add(firstDeleteBackoff)
		default:
			o.retryRunning = true
			o.enqueue(&flow{group: e.group, client: e.deletion.client, priority: ctxsync.Delete, run: func(f *flow) {
				err := f.delete(e, deleteRetryTimeout)
				if o.retryRunning = false; slices.Contains(o.pendingDeletes, e) { // the others come first the next time
					o.pendingDeletes = append(without(o.pendingDeletes, e), e)
				}
				for _, other := range o.pendingDeletes { // a ready-made backend is a gateway of its own
					if errors.Is(err, backends.ErrNoReply) && (other.backend == e.backend || e.backend.config.Ready == nil) {
						other.deletion.postpone(time.Now())
					}
				}
				o.retryDeletes()
			}})
			return
		}
	}
	o.armRetryTimer()
}

// retryNow attempts a deletion once more, for which Close of the client waits.
func (c *Client) retryNow(e *entry) {
	if e.deletion.closingClient == c {
		return
	}
	e.deletion.closingClient = c
	c.owner.enqueue(&flow{group: e.group, client: c, priority: ctxsync.Delete, run: func(f *flow) {
		if e.state == pendingDelete && e.deletion.client == c { // else it has left meanwhile
			_ = f.delete(e, deleteRetryTimeout)
		}
	}})
}

// RemainsError says that a mapping remains on the gateway until its lifetime ends.
type RemainsError struct {
	Protocol    backends.Protocol
	Port        uint16    // the internal port
	Until       time.Time // zero: not known, or no end
	Unconfirmed bool      // a request got no reply: the gateway may have it or not
	Err         error
}

func (e *RemainsError) Error() string {
	remains, until := "remains", "its lifetime ends"
	if e.Unconfirmed {
		remains = "may remain"
	}
	if !e.Until.IsZero() {
		until = e.Until.Format(time.TimeOnly) + ", when its lifetime ends"
	}
	return fmt.Sprintf("%v port %d %s on the gateway until %s: %v", e.Protocol, e.Port, remains, until, e.Err)
}

func (e *RemainsError) Unwrap() error { return e.Err }

// remains returns the error for a mapping whose deletion failed.
func (e *entry) remainsError(err error) error {
	return &RemainsError{Protocol: e.Protocol, Port: e.requestedInternal(), Until: e.expires(), Unconfirmed: e.granted == nil, Err: err}
}

// remaining returns an error for each mapping of a client that is not deleted. What is in
// place at another gateway now is only logged.
func (o *Owner) remainingErrors(c *Client, cause error) error {
	var errs []error
	for _, e := range o.allEntries() {
		own := slices.IndexFunc(e.holders, c.owns)
		if own >= 0 && !slices.ContainsFunc(e.holders, func(h *Handle) bool { return !h.Status().Closed }) {
			e.beginDeletion(e.holders[own])
		}
		switch {
		case e.deletion == nil || e.deletion.client != c || e.state == restored || e.isExpired(time.Now()):
		case e.granted == nil && e.order.created == 0 && e.deletion.lastHolder != nil && e.deletion.lastHolder.wasGranted: // another backend granted it
		case e.deletion.moved:
			slog.New(c.sink.Handler()).Warn("a mapping remains at a gateway that was left",
				"gateway", o.key.Gateway.Addr(), "err", e.remainsError(cmp.Or(e.err, cause)))
		case e.state == pendingDelete:
			errs = append(errs, e.remainsError(e.err))
		default: // its deletion is in flight or waits for its turn
			errs = append(errs, e.remainsError(cmp.Or(cause, backends.ErrNoReply)))
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
	for _, e := range c.owner.allEntries() {
		if e.deletion != nil && e.deletion.client == c && e.granted != nil {
			records = append(records, e.recordOf(*e.granted))
		}
	}
	return records
}

// abandon drops whatever a client holds or held last.
func (o *Owner) discard(c *Client) {
	for _, e := range o.allEntries() {
		e.holders = slices.DeleteFunc(e.holders, c.owns)
		if len(e.holders) == 0 && (e.deletion == nil || e.deletion.client == c) {
			e.remove()
		}
	}
}

// remainder is a deletion that an owner could not finish.
type unfinishedDelete struct {
	config BackendConfig
	entry  entry
}

// remains returns the deletions that are not finished, by the owner that they are for.
func (o *Owner) unfinishedDeletes() (out []endedOwner) {
	unfinished := o.unassigned
	for _, e := range o.allEntries() {
		if e.deletion != nil && e.state != restored {
			old := entry{
				Member: e.Member, spec: e.spec, requestedExternal: e.requestedExternal, unconfirmed: e.unconfirmed, unconfirmedUntil: e.unconfirmedUntil, granted: e.granted,
				deletion: &deletion{lastHolder: e.deletion.lastHolder},
			}
			if e.state == creating { // the request may be in flight
				old.recordNoReply()
			}
			unfinished = append(unfinished, unfinishedDelete{e.backend.config, old})
		}
	}
	for _, r := range unfinished {
		key := o.key.of(r.config)
		i := slices.IndexFunc(out, func(e endedOwner) bool { return e.key == key })
		if i < 0 {
			i, out = len(out), append(out, endedOwner{key: key})
		}
		out[i].deletes = append(out[i].deletes, r)
	}
	return out
}

// inherit takes over a deletion of an ended owner, if the client has a backend for it.
func (c *Client) takeOver(r unfinishedDelete) bool {
	i := slices.IndexFunc(c.backends, func(b *Backend) bool { return b.config == r.config })
	if i < 0 {
		return false
	}
	e, g := r.entry, c.owner.groupOf(r.entry.spec)
	e.group, e.backend, e.deletion.client = g, c.backends[i], c
	c.owner.portsVary = c.owner.portsVary || e.spec.portsVary()
	others := g.entries
	if c.owner.portsVary {
		others = c.owner.allEntries()
	}
	for _, other := range others {
		if other.isSameMapping(&e) { // as the gateway tells mappings apart
			other.mergeUnconfirmed(&e)
			g.deleteIfEmpty()
			return true
		}
	}
	e.superseded = g.entry(e.backend.name, e.Member) != nil
	c.owner.addPendingDelete(g.add(&e), backends.ErrNoReply)
	return true
}

// mayBe records that the gateway may have an entry already, as what is to be deleted. A
// grant takes its place.
func (e *entry) mergeUnconfirmed(old *entry) {
	if e.state == active {
		return
	}
	e.unconfirmed = e.unconfirmed || old.unconfirmed || e.state == creating
	if old.unconfirmedUntil.After(e.unconfirmedUntil) {
		e.unconfirmedUntil = old.unconfirmedUntil
	}
	if m := old.granted; m != nil && (e.granted == nil || m.Granted.After(e.granted.Granted)) {
		e.granted = m
	}
}

// Adopt makes the owner answer for a mapping of an earlier run: it is taken over by the
// first request for the same, or deleted after a time. If two files have the same
// mapping, the newer grant wins. It returns false if the client has no such backend.
func (c *Client) Restore(r state.Record, grace time.Duration) (adopted bool) {
	c.owner.loop.Do(func() { adopted = c.restore(r, grace) })
	return adopted
}

func (c *Client) restore(r state.Record, grace time.Duration) bool {
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
		if e.deletion != nil && e.deletion.client == nil {
			e.deletion.client = c
		}
		return true
	case e == nil:
		e = g.add(&entry{backend: c.backends[i], Member: member})
		o.pendingDeletes = append(o.pendingDeletes, e)
	}
	o.portsVary = o.portsVary || m.Internal.Port() != r.Port || s.portsVary()
	e.state, e.granted, e.requestedExternal, e.spec = restored, m, s.External, s
	now := time.Now()
	e.deletion = &deletion{client: c, nextAttempt: now.Add(grace), pause: firstDeleteBackoff}
	o.armRetryTimer()
	return true
}
