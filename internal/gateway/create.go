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
)

const (
	// oneOfSeveral bounds how long one backend is waited for while there are others to ask.
	perBackendTimeout = 4 * time.Second
	// lateReply is how long a request goes on after its caller's deadline, so that a late
	// reply is not lost.
	lateReply = time.Second
)

// about runs a part of a flow that is about one handle. Its context ends with that of the
// caller, and if the handle is closed or detached.
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

// gone returns nil if a handle is attached to the owner and open, or why it is not.
func (f *flow) checkAttached(h *Handle) error {
	switch {
	case h.Status().Closed || f.Owner.ctx.Err() != nil:
		return ErrEnded
	case !f.isAttached(h):
		return ErrMoved
	}
	return nil
}

// ensure requests a handle anew. What it has and does not fit together goes first.
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

// errGivenUp is what a handle keeps of a request whose caller gave up. The error of the
// caller's context says nothing of the gateway.
var errCallEnded = errors.New("the call that requested the mapping ended before it was granted")

// fail records that a request came to nothing, and when the next comes.
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

// replace requests another spec in place of what a handle has, or has it back.
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
			err = errors.Join(err, errors.New("and the mapping as it was cannot be had back: "+restoreErr.Error()))
		}
	}
	return err
}

// establish requests what a handle wants from the first backend that can and will.
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
			break // it would only seem to be silent
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
	return c.sink.CombineErrors(failures, false)
}

var errLostAgain = fmt.Errorf("%w: it lost the mapping again", backends.ErrNoReply)

// settle publishes what a handle was granted, and gives up what it has elsewhere. What
// the gateway lost meanwhile is requested again.
func (f *flow) recordGrants(c *Client, h *Handle, b *Backend, s *Spec, reason string) error {
	if h.client.Load() != c {
		_ = f.releaseAll(h) // its deletion is retried
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

// tryBackend asks one backend, if it can express the spec and its gateway answers.
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
	switch {
	case hasDeadline && !last:
		timeout = min(perBackendTimeout, time.Until(at)/2)
	case !last:
		timeout = perBackendTimeout
	case hasDeadline:
		timeout = max(timeout, time.Until(at)+lateReply)
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

// mapAll asks one backend for all members of the spec, the first at an external port and
// the others at the same or the following ports. It gives back what it got if it did not
// get all.
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
				f.log().Warn("a mapping of a failed attempt remains for now", "err", releaseErr)
			}
			return err
		}
		port = granted[0].External.Port()
	}
	return nil
}

// acquire makes a handle hold an entry, and requests that.
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
	granted, err := f.request(timeout, e.requestFunc(s, port))
	if e.state == removed { // the client was abandoned
		return nil, ErrEnded
	}
	if err != nil {
		if f.isReply(err) && before != nil && (e.unconfirmed || e.state == active) { // what was requested before counts
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
			old.remove() // the grant took its place
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
	if err := context.Cause(f.ctx); err != nil { // nobody wants it any more
		_ = f.releaseEntries(h, []*entry{e}, s.RequestTimeout)
		return nil, err
	}
	return e, nil
}

// hold adds a handle to the holders of the entry that a request is about.
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

// request returns what to call for an entry: what the gateway has is renewed in place,
// also what an earlier run left. If that does not fit, it is deleted first.
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
	return func(ctx context.Context) (backends.Mapping, error) {
		_ = b.Unmap(ctx, *old) // if something remains that is in the way, Map tells
		return create(ctx)
	}
}

// fits reports whether a mapping of an earlier run is what a spec asks for.
func (e *entry) matches(s *Spec) bool {
	m, addr, port := e.granted, s.Internal.Addr(), s.internalPort(e.Member)
	if s.SamePort {
		port = m.External.Port()
	}
	return m.Remote == s.Remote && m.Internal.Port() == port && (!addr.IsValid() || addr.IsUnspecified() || addr == m.Internal.Addr())
}

// isReplacedBy reports whether a mapping takes the place of what the gateway has or may
// have, by internal and external port. UPnP identifies a mapping by its external port,
// NAT-PMP and PCP by its internal one.
func (e *entry) isReplacedBy(internal, external uint16) bool {
	if e.backend.name != upnp.Name {
		return internal == e.internalPort()
	}
	return external == e.externalPort()
}

// isSameAs reports whether two entries are one mapping of the gateway.
func (e *entry) isSameMapping(other *entry) bool {
	return e.backend == other.backend && e.Protocol == other.Protocol && e.group.internal.Addr() == other.group.internal.Addr() &&
		e.internalPort() == other.internalPort() && e.isReplacedBy(other.internalPort(), other.externalPort())
}

// split keeps apart what an entry was before it is requested as another mapping, to be
// deleted.
func (o *Owner) splitSuperseded(e *entry) {
	old := *e
	old.superseded, old.holders = true, nil
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

// refused records that the request of an acquire failed. Without a reply the gateway may
// have granted it: a handle that will try again keeps the entry.
func (f *flow) recordFailedAcquire(h *Handle, e *entry, err error) {
	keepsEntry := f.isAttached(h) && (h.wasGranted || h.spec().Background) && !h.spec().Once
	if f.isReply(err) {
		if keepsEntry {
			f.watch(e.backend) // it may announce that it can now
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
		if e.beginDeletion(h); !f.isReply(err) { // what was refused before says nothing of this
			f.pendingDeletes = without(f.pendingDeletes, e)
		}
		f.addPendingDelete(e, err)
	}
}
