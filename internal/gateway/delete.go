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

// The timing of deletions. The pause between attempts doubles.
const (
	firstDeleteBackoff = time.Second
	maxDeleteBackoff   = time.Minute
	deleteRetryTimeout = time.Second // short, because other deletions wait for the attempt
	// firstDeleteTimeout bounds the first attempt. It is longer than the wait of Close. It is
	// shorter than the retransmission pauses of a TCP connection that lost packets, because a
	// new connection may be faster.
	firstDeleteTimeout = 3 * time.Second
)

// Closing is a close in progress and its result.
type Closing struct {
	Done chan struct{}
	Err  error // valid once Done is closed
}

// BeginClose closes a handle. Its mappings are deleted, or remain until they expire if
// keepOnGateway is true. A second call returns the first Closing. BeginClose and Attach must
// not run concurrently.
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

// markClosed sets the status to closed, wakes all waiters and cancels the flow for the
// handle.
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
		for _, e := range slices.Clone(g.entries) { // pending deletions of entries that the handle was the last to hold
			if e.state == pendingDelete && e.deletion.lastHolder == h {
				errs = append(errs, f.delete(e, deleteRetryTimeout))
			}
		}
		closing.Err = errors.Join(append(errs, f.releaseAll(h))...)
	}})
}

// leaveToExpire removes a handle from the holders of its granted entries. Entries without
// another holder then expire on the gateway. An entry whose request is in flight is not
// included, and is deleted.
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

// releaseOldGateways releases the entries that a handle still holds at former gateways. If
// moved is true, the handle is granted at its present gateway.
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

// releaseAll releases all entries that a handle holds at this gateway, including unconfirmed
// ones.
func (f *flow) releaseAll(h *Handle) error {
	if c := h.client.Load(); c != nil && c.owner == f.Owner { // otherwise the handle belongs to another owner
		h.backend = nil
	}
	return f.releaseEntries(h, f.group.heldBy(h), min(h.spec().RequestTimeout, firstDeleteTimeout))
}

// releaseEntries removes a handle from the holders of entries. An entry without another
// holder is deleted.
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

// beginDeletion records the last holder of an entry. Its client becomes responsible for the
// deletion, unless the responsible client is being closed.
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

// clearDeletion ends the deletion of an entry, because it is deleted or held again.
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

// delete deletes an entry that has no holders. If it is unknown whether the gateway has the
// mapping, delete repeats the request first; the response shows which mapping to delete. If
// the gateway refuses the request, delete deletes the mapping that was requested. If another
// program of this user holds the mapping, delete only forgets it.
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
	e.release()
	end, isLast := e.backend.programs.BeginDelete(e.deletionKey())
	if !isLast {
		f.log().Info("a mapping stays, because another program of this user holds it", "protocol", e.Protocol, "port", e.internalPort())
		e.remove()
		return nil
	}
	defer end()
	unmap := func(ctx context.Context) error { return e.backend.Unmap(ctx, *m) }
	if unconfirmed {
		unmap = f.unmapUnconfirmed(e, timeout)
	}
	err := f.request(timeout, func(ctx context.Context) error {
		return unmap(ctxsync.WithPriority(ctx, ctxsync.Delete))
	})
	return f.recordDeletion(e, err)
}

// unmapUnconfirmed returns the function that repeats the request of an entry and deletes the
// mapping.
func (f *flow) unmapUnconfirmed(e *entry, timeout time.Duration) func(context.Context) error {
	request := e.spec.request(e.Member, e.requestedExternal)
	// Any mapping that the gateway may have is to be deleted. By UPnP, a request for another
	// port would create another mapping, except over IPv6, where ports are not translated.
	request.Exact = e.backend.name == upnp.Name && e.requestedExternal != 0 && e.group.owner.key.Gateway.Addr().Is4()
	request.Lifetime = max(time.Until(e.unconfirmedUntil), time.Second)
	m, assumed := e.granted, e.assumedMapping(request)
	return func(ctx context.Context) error {
		half, cancel := bound(ctx, timeout/2) // the rest is for the deletion
		defer cancel()
		switch repeated, err := e.backend.Map(half, request); {
		case err == nil:
			return e.backend.Unmap(ctx, repeated)
		case m != nil: // delete at least the known mapping
			return e.backend.Unmap(ctx, *m)
		// Without a reply, the deletion is requested too, but the request may still arrive later.
		case assumed != nil && e.backend.Unmap(ctx, *assumed) == nil && f.isReply(err):
			return nil
		default:
			return err
		}
	}
}

// assumedMapping returns the mapping that a request may have created. It returns nil if the
// deletion could affect another program or host. A UPnP mapping is deleted by its external
// port, which another program may use. For a ready-made backend, this host's address is
// unknown.
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

// recordDeletion records the result of a deletion. It returns a RemainsError if the mapping
// remains.
func (f *flow) recordDeletion(e *entry, err error) error {
	if e.state == removed { // the entry expired in the meantime
		return nil
	}
	replied := f.isReply(err)
	if replied {
		f.lastReply.Store(int64(time.Since(f.start)))
	}
	if err != nil {
		// After a second refusal, the deletion is attempted only once a day and by Close. A
		// mapping that the gateway may have for longer than is known is retried as before.
		final := (e.state == pendingDelete || e.state == restored) && replied && e.granted != nil && !e.unconfirmed
		remains := e.remainsError(err)
		if f.addPendingDelete(e, err); final && e.deletion != nil {
			e.deletion.nextAttempt = earlier(e.expires(), time.Now().Add(maxLifetime))
		}
		return remains
	}
	e.remove()
	for _, other := range f.group.entries { // the deletion may have broken the other entries
		if other.isHeld() && !other.isOnce() {
			other.mustRenew = true
			f.group.enqueueRenewals(ctxsync.Renewal)
		}
	}
	return nil
}

// addPendingDelete marks an entry for deletion and schedules the next attempt.
func (o *Owner) addPendingDelete(e *entry, err error) {
	e.state, e.err = pendingDelete, err
	e.release()
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

// postpone moves an attempt that is due to a later time.
func (d *deletion) postpone(now time.Time) {
	if !d.nextAttempt.After(now) {
		d.pause = min(2*d.pause, maxDeleteBackoff)
		d.nextAttempt = now.Add(d.pause)
	}
}

// armRetryTimer sets the retry timer to the earliest attempt of a pending deletion.
func (o *Owner) armRetryTimer() {
	var next time.Time
	for _, e := range o.pendingDeletes {
		next = earlier(next, e.deletion.nextAttempt)
	}
	if !o.retryRunning {
		o.loop.Arm(&o.retryTimer, next)
	}
}

// retryDeletes attempts the deletions that are due, one at a time. If the gateway does not
// reply to one attempt, the other deletions at that gateway are postponed.
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
		case len(e.holders) > 0: // a handle is taking the entry over
			e.deletion.nextAttempt = now.Add(firstDeleteBackoff)
		default:
			o.retryRunning = true
			o.enqueue(&flow{group: e.group, client: e.deletion.client, priority: ctxsync.Delete, run: func(f *flow) {
				err := f.delete(e, deleteRetryTimeout)
				if o.retryRunning = false; slices.Contains(o.pendingDeletes, e) { // other deletions are attempted first next time
					o.pendingDeletes = append(without(o.pendingDeletes, e), e)
				}
				for _, other := range o.pendingDeletes { // each ready-made backend is a gateway of its own
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

// retryNow attempts a deletion once more. Close of the client waits for the attempt.
func (c *Client) retryNow(e *entry) {
	if e.deletion.closingClient == c {
		return
	}
	e.deletion.closingClient = c
	c.owner.enqueue(&flow{group: e.group, client: c, priority: ctxsync.Delete, run: func(f *flow) {
		if e.state == pendingDelete && e.deletion.client == c { // otherwise the client is no longer responsible for it
			_ = f.delete(e, deleteRetryTimeout)
		}
	}})
}

// RemainsError is returned if a mapping remains on the gateway until its lifetime ends.
type RemainsError struct {
	Protocol    backends.Protocol
	Port        uint16    // the internal port
	Until       time.Time // zero: unknown, or no end
	Unconfirmed bool      // a request got no reply: the mapping may or may not exist
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

// remainsError returns the error for an entry whose deletion failed.
func (e *entry) remainsError(err error) error {
	return &RemainsError{Protocol: e.Protocol, Port: e.requestedInternal(), Until: e.expires(), Unconfirmed: e.granted == nil, Err: err}
}

// remainingErrors returns an error for each entry for whose deletion the client is
// responsible and that is not deleted. An entry whose handle is granted at another gateway is
// only logged.
func (o *Owner) remainingErrors(c *Client, cause error) error {
	var errs []error
	for _, e := range o.allEntries() {
		own := slices.IndexFunc(e.holders, c.owns)
		if own >= 0 && !slices.ContainsFunc(e.holders, func(h *Handle) bool { return !h.Status().Closed }) {
			e.beginDeletion(e.holders[own])
		}
		switch {
		case e.deletion == nil || e.deletion.client != c || e.state == restored || e.isExpired(time.Now()):
		case e.granted == nil && e.order.created == 0 && e.deletion.lastHolder != nil && e.deletion.lastHolder.wasGranted && !o.isReply(cmp.Or(e.err, cause, backends.ErrNoReply)):
			// Another backend has granted the mappings of the handle.
		case e.deletion.moved:
			slog.New(c.sink.Handler()).Warn("a mapping remains at a previous gateway",
				"gateway", o.key.Gateway.Addr(), "err", e.remainsError(cmp.Or(e.err, cause)))
		case e.state == pendingDelete:
			errs = append(errs, e.remainsError(e.err))
		default: // its deletion is in flight or waits for its turn
			errs = append(errs, e.remainsError(cmp.Or(cause, backends.ErrNoReply)))
		}
	}
	return errors.Join(errs...)
}

// Records returns records of the mappings for which the client is responsible and that no
// handle holds: pending deletions and restored mappings.
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

// discard removes the entries that only this client holds, and those for whose deletion it is
// responsible.
func (o *Owner) discard(client *Client) {
	for _, e := range o.allEntries() {
		e.holders = slices.DeleteFunc(e.holders, client.owns)
		if len(e.holders) == 0 && (e.deletion == nil || e.deletion.client == client) {
			e.remove()
		}
	}
}
