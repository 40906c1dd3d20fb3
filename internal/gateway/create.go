package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/internal/holders"
)

const (
	// perBackendTimeout bounds the requests to one backend while there are others to try. A
	// device that was found by a search may need searchedTimeout: it is slow, needs several
	// requests, and some devices add a mapping only after five seconds.
	perBackendTimeout = 4 * time.Second
	searchedTimeout   = 10 * time.Second
	// lateReplyTime is how long a request continues after its caller's deadline, so that a late
	// reply is not lost.
	lateReplyTime = time.Second
)

// runFor runs the part of a flow that concerns one handle. Its context ends with ctx, and if
// the handle is closed or detached.
func (f *flow) runFor(ctx context.Context, h *Handle, run func() error) error {
	if err := f.checkAttached(h); err != nil {
		return err
	}
	ctx, h.cancel = context.WithCancelCause(ctx)
	stop := h.cancel
	defer context.AfterFunc(f.Owner.ctx, func() { stop(ErrEnded) })()
	f.ctx = ctx
	err := run()
	f.ctx = f.Owner.ctx
	if stop(nil); f.isAttached(h) {
		h.cancel = nil
	}
	return err
}

// checkAttached returns nil if a handle is open and attached to the owner. Otherwise it
// returns ErrEnded or ErrMoved.
func (f *flow) checkAttached(h *Handle) error {
	switch {
	case h.Status().Closed || f.Owner.ctx.Err() != nil:
		return ErrEnded
	case !f.isAttached(h):
		return ErrMoved
	}
	return nil
}

// recreate creates the mappings of a handle again. If the handle still has a part of them,
// recreate deletes that first.
func (f *flow) recreate(h *Handle, reason string) error {
	granted := slices.DeleteFunc(f.group.heldBy(h), func(e *entry) bool { return e.state != active })
	h.backend = nil
	_ = f.releaseEntries(h, granted, deleteRetryTimeout)
	err := f.create(h, h.spec(), reason)
	if err != nil {
		f.recordFailure(h, err)
	}
	return err
}

// errCallEnded is the error that a handle keeps if its caller stopped waiting. It replaces the error
// of the caller's context, which is unrelated to the gateway.
var errCallEnded = errors.New("the call that requested the mapping ended before it was granted")

// recordFailure records that a request failed, and the time of the next one.
func (f *flow) recordFailure(h *Handle, err error) {
	if !f.isAttached(h) || h.isUnusable() {
		return
	}
	if f.ctx.Err() != nil && !IsTimeout(f.ctx) {
		err = errCallEnded
	}
	h.failures++
	if h.nextRequest = time.Now().Add(Backoff(h.failures, err, f.registry.jitter)); h.spec().Once {
		h.nextRequest = time.Time{}
	}
	h.publish(func(s *Status) { s.Granted, s.Err, s.NextRequest = nil, err, h.nextRequest }, err.Error())
}

// replace deletes the mappings of a handle and requests another spec. If that fails, it
// requests the previous spec again.
func (f *flow) replace(h *Handle, s *Spec) error {
	if h.backend == nil {
		h.preferred = 0
	}
	before := h.preferred
	h.preferred = 0
	_ = f.releaseAll(h)
	err := f.create(h, s, "refreshed")
	switch {
	case err == nil || !f.isAttached(h):
	case before == 0 || f.ctx.Err() != nil:
		f.recordFailure(h, err)
	default:
		h.preferred = before
		if restoreErr := f.recreate(h, "refreshed"); restoreErr != nil {
			err = errors.Join(err, errors.New("the previous mapping cannot be restored: "+restoreErr.Error()))
		}
	}
	return err
}

// create requests the mappings of a spec from the backends, in order of preference, until one
// grants them.
func (f *flow) create(h *Handle, s *Spec, reason string) error {
	c := h.client.Load()
	if !f.isAttached(h) {
		return ErrMoved
	}
	var err error
	if f.offLoop(func() { err = c.Probe(f.ctx, s.ProbeTimeout) }); err != nil {
		return err
	}
	var failures []error
	noReplies := true
	ordered := c.backendsFor(f.group, s)
	for i, b := range ordered {
		if len(failures) > 0 && f.ctx.Err() != nil {
			break // the context has ended: the backend would only seem not to reply
		}
		last := !slices.ContainsFunc(ordered[i+1:], (*Backend).mayBeAvailable)
		err := f.tryBackend(c, h, b, s, last)
		if err == nil {
			return f.recordGrants(c, h, b, s, reason)
		}
		if f.ctx.Err() != nil && !IsTimeout(f.ctx) {
			return err
		}
		noReplies = noReplies && errors.Is(err, backends.ErrNoReply)
		failures = append(failures, err)
		if conflict := (*ConflictError)(nil); errors.As(err, &conflict) {
			break
		}
	}
	if noReplies {
		c.resetProbes()
	}
	return c.sink.CombineErrors(failures, c.owner.key.Gateway.Addr(), s)
}

var errLostAgain = fmt.Errorf("%w: the gateway lost the mapping again", backends.ErrNoReply)

// recordGrants publishes the new mappings of a handle, and deletes those that other backends
// granted it before. If the gateway has lost a mapping in the meantime, it is requested
// again.
func (f *flow) recordGrants(c *Client, h *Handle, b *Backend, s *Spec, reason string) error {
	if h.client.Load() != c {
		_ = f.releaseAll(h) // if its deletion fails, it is retried
		return ErrMoved
	}
	h.backend, h.failures, h.nextRequest, h.lostBefore = b, 0, time.Time{}, time.Time{}
	if s != h.spec() {
		h.publish(func(now *Status) { now.Spec = s }, "")
	}
	f.updateStatus(h, reason)
	_ = f.releaseEntries(h, slices.DeleteFunc(f.group.heldBy(h), func(e *entry) bool { return e.backend == b }), deleteRetryTimeout)
	if h.Status().IsActive() {
		return nil
	}
	h.reason = reason
	if f.renewPass(); h.Status().IsActive() {
		return nil
	}
	err := cmp.Or(h.Status().Err, errLostAgain)
	_ = f.releaseAll(h)
	return err
}

// tryBackend requests the mappings of a spec from one backend. It fails if the backend does
// not support the spec, or if its gateway does not reply.
func (f *flow) tryBackend(c *Client, h *Handle, b *Backend, s *Spec, last bool) error {
	if !f.isAttached(h) {
		return ErrMoved
	}
	preferred := h.preferred
	if e := f.group.entry(b.name, Member{Protocol: s.Protocols[0]}); preferred == 0 && s.External == 0 && e != nil && e.state == restored && e.matches(s) {
		preferred = e.granted.External.Port()
	}
	port := s.firstPort(preferred)
	for _, m := range s.Members() {
		if err := b.Supports(s.request(m, port+m.Offset)); err != nil {
			return err
		}
	}
	timeout := s.RequestTimeout
	at, hasDeadline := f.ctx.Deadline()
	share, limit := time.Until(at)/2, perBackendTimeout
	if b.searches {
		share, limit = time.Until(at)*2/3, searchedTimeout
	}
	switch {
	case hasDeadline && !last:
		timeout = min(limit, share)
	case !last:
		timeout = limit
	case hasDeadline:
		timeout = max(timeout, time.Until(at)+lateReplyTime)
	}
	var err error
	if f.offLoop(func() { err = c.EnsureProbed(f.ctx, b, min(s.ProbeTimeout, timeout)) }); err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		err := f.mapAll(h, b, s, port, timeout)
		if err == nil {
			return nil
		}
		var retry bool
		if port, retry = s.nextPort(port, attempt, err); !retry || f.ctx.Err() != nil {
			return err
		}
	}
}

// mapAll requests all members of a spec from one backend. The first member gets the given
// external port; the others get the same port or the following ones. If one request fails,
// mapAll deletes the mappings that were granted.
func (f *flow) mapAll(h *Handle, b *Backend, s *Spec, port uint16, timeout time.Duration) error {
	var (
		held    []*entry
		granted []*backends.Mapping
	)
	for _, m := range s.Members() {
		e, err := f.acquire(h, b, s, m, port+m.Offset, timeout)
		if err == nil {
			held, granted = append(held, e), append(granted, e.granted)
			err = s.checkPorts(granted)
		}
		if err != nil {
			if releaseErr := f.releaseEntries(h, held, deleteRetryTimeout); releaseErr != nil {
				f.log().Warn("a mapping of a failed attempt remains until its deletion is retried", "err", releaseErr)
			}
			return err
		}
		port = granted[0].External.Port()
	}
	return nil
}

// acquire adds the handle to the holders of an entry, and requests or renews the entry with
// the given external port.
func (f *flow) acquire(h *Handle, b *Backend, s *Spec, m Member, port uint16, timeout time.Duration) (*entry, error) {
	if err := context.Cause(f.ctx); err != nil {
		return nil, err
	}
	f.portsVary = f.portsVary || s.portsVary()
	e, err := f.group.addHolder(h, b, s, m, s.request(m, port))
	if err != nil {
		return nil, err
	}
	before, externalBefore := e.spec, e.requestedExternal
	e.spec, e.requestedExternal, e.verifyAt = s, port, time.Time{}
	if e.state != active && !e.hold(s.request(m, port).Internal.Port(), port) {
		keys := e.held
		f.offLoop(func() { b.programs.Wait(f.ctx, keys[:]...) })
	}
	var granted backends.Mapping
	send := e.requestFunc(s, port)
	err = f.request(timeout, func(ctx context.Context) (err error) {
		granted, err = send(ctx)
		return err
	})
	if e.state == removed { // the client was discarded
		return nil, ErrEnded
	}
	if err != nil {
		if f.isReply(err) && before != nil && (e.unconfirmed || e.state == active) {
			// The request was refused: the entry is still what was requested before.
			e.spec, e.requestedExternal = before, externalBefore
		}
		f.recordFailedAcquire(h, e, err)
		return nil, err
	}
	if old := e.granted; e.deletion != nil && old != nil && !e.isReplacedBy(granted.Internal.Port(), granted.External.Port()) {
		f.splitSuperseded(e)
	}
	for _, old := range slices.Clone(f.group.entries) {
		if old.superseded && old.backend == b && old.Protocol == m.Protocol && old.isReplacedBy(granted.Internal.Port(), granted.External.Port()) {
			old.remove() // the new grant replaced it on the gateway
		}
	}
	e.clearDeletion()
	e.record(&granted, e.state != active)
	f.watch(b)
	for _, other := range e.holders {
		if other != h {
			f.updateStatus(other, "")
		}
	}
	if err := context.Cause(f.ctx); err != nil { // the caller has given up
		_ = f.releaseEntries(h, []*entry{e}, s.RequestTimeout)
		return nil, err
	}
	return e, nil
}

// addHolder adds a handle to the holders of the entry that a request concerns, and creates
// the entry if necessary. It fails if another handle holds the port with other options.
func (g *group) addHolder(h *Handle, b *Backend, s *Spec, m Member, r backends.Request) (*entry, error) {
	if other := g.heldByOtherBackend(b.name, m); other != nil {
		return nil, &ConflictError{m.Protocol, r.Internal.Port(), other.backend.name}
	}
	if err := g.takeOverUnheld(m, r.Internal.Port(), b); err != nil {
		return nil, err
	}
	e := g.entry(b.name, m)
	if e != nil {
		for _, other := range e.holders {
			if other != h && !e.spec.sharesWith(s) {
				return nil, &ConflictError{Protocol: m.Protocol, Port: r.Internal.Port()}
			}
		}
	}
	switch {
	case e == nil:
		e = g.add(&entry{backend: b, Member: m})
	case e.state != active && (e.unconfirmed || e.deletion != nil) && !e.isReplacedBy(r.Internal.Port(), r.External.Port()):
		g.owner.splitSuperseded(e)
	}
	if !e.isHeldBy(h) {
		e.holders = append(e.holders, h)
	}
	return e, nil
}

// requestFunc returns the function that requests an entry from its backend. An active or
// restored mapping is renewed in place. A restored mapping that does not match the spec is
// deleted first.
func (e *entry) requestFunc(s *Spec, external uint16) func(context.Context) (backends.Mapping, error) {
	b, old, r := e.backend.Backend, e.granted, s.request(e.Member, external)
	create := func(ctx context.Context) (backends.Mapping, error) { return b.Map(ctx, r) }
	switch {
	case e.state == active:
		return func(ctx context.Context) (backends.Mapping, error) { return b.Renew(ctx, *old, r) }
	case e.state != restored:
		return create
	case e.matches(s) && external == old.External.Port():
		return func(ctx context.Context) (backends.Mapping, error) {
			m, err := b.Renew(ctx, *old, r)
			if err == nil || ctx.Err() != nil {
				return m, err
			}
			return create(ctx)
		}
	}
	key := e.deletionKey()
	return func(ctx context.Context) (backends.Mapping, error) {
		if end, ok := e.backend.programs.BeginDelete(key); ok {
			_ = b.Unmap(ctx, *old) // if a mapping remains and conflicts, Map returns an error
			end()
		}
		return create(ctx)
	}
}

// matches reports whether a restored mapping is what a spec requests.
func (e *entry) matches(s *Spec) bool {
	m, addr, port := e.granted, s.Internal.Addr(), s.internalPort(e.Member)
	if s.SamePort {
		port = m.External.Port()
	}
	return m.Remote == s.Remote && m.Internal.Port() == port && (!addr.IsValid() || addr.IsUnspecified() || addr == m.Internal.Addr())
}

// isReplacedBy reports whether a mapping with these ports would replace the entry on the
// gateway. UPnP identifies a mapping by its external port; NAT-PMP and PCP identify it by its
// internal port.
func (e *entry) isReplacedBy(internal, external uint16) bool {
	if e.backend.name != upnp.Name {
		return internal == e.internalPort()
	}
	return external == e.externalPort()
}

// isSameMapping reports whether two entries are the same mapping on the gateway.
func (e *entry) isSameMapping(other *entry) bool {
	return e.backend == other.backend && e.Protocol == other.Protocol && e.group.internal.Addr() == other.group.internal.Addr() &&
		e.internalPort() == other.internalPort() && e.isReplacedBy(other.internalPort(), other.externalPort())
}

// splitSuperseded moves the present state of an entry to a new, superseded entry, which will
// be deleted. The entry itself can then be requested as another mapping.
func (o *Owner) splitSuperseded(e *entry) {
	old := *e
	old.superseded, old.holders, old.held = true, nil, [2]holders.Key{}
	if old.deletion == nil {
		old.deletion = &deletion{}
		for _, h := range e.holders {
			old.beginDeletion(h)
		}
	}
	o.pendingDeletes, e.deletion, e.unconfirmed = without(o.pendingDeletes, e), nil, false
	e.state, e.granted, e.unconfirmedUntil = creating, nil, time.Time{}
	o.addPendingDelete(e.group.add(&old), backends.ErrNoReply)
}

// recordFailedAcquire records that the request of acquire failed. If there was no reply, the
// gateway may have granted the request. A handle that is retried then keeps the entry.
func (f *flow) recordFailedAcquire(h *Handle, e *entry, err error) {
	keepsEntry := f.isAttached(h) && (h.wasGranted || h.spec().Background) && !h.spec().Once
	if f.isReply(err) {
		if keepsEntry {
			f.watch(e.backend) // the gateway may announce that it can grant the mapping now
		}
	} else {
		e.recordNoReply()
		if keepsEntry {
			return
		}
	}
	e.holders = without(e.holders, h)
	switch {
	case len(e.holders) > 0:
	case e.state == creating && !e.unconfirmed:
		e.remove()
	default:
		if e.beginDeletion(h); !f.isReply(err) { // without a reply, an earlier refusal does not matter: start a new series of retries
			f.pendingDeletes = without(f.pendingDeletes, e)
		}
		f.addPendingDelete(e, err)
	}
}
