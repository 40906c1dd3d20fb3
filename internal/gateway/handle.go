package gateway

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/state"
)

// Spec describes the mappings that a handle requests. A Spec is immutable: a handle replaces
// it as a whole.
type Spec struct {
	Protocols      []backends.Protocol // one, or several that must have the same external port
	Internal       netip.AddrPort      // the zero address means this host
	Count          uint16              // number of ports from Internal's port, as one unit; 0 means 1
	External       uint16              // suggested external port of the first internal port; 0: the internal port
	Address        netip.Addr          // suggested external address, or the zero Addr
	Exact          bool                // accept only this external port and address
	SamePort       bool                // the internal port follows the external port
	Remote         netip.AddrPort      // the only peer that may connect; the zero value admits all
	Lifetime       time.Duration
	RenewEvery     time.Duration // 0: half of the granted lifetime
	Description    string
	Once           bool          // the mappings are kept for one lifetime and not renewed
	Background     bool          // retry even if the first request fails
	RequestTimeout time.Duration // bounds one request
	ProbeTimeout   time.Duration // bounds one probe
}

// Member identifies one of the mappings that make up a Spec.
type Member struct {
	Protocol backends.Protocol
	Offset   uint16 // of its port from the first port
}

// Members returns the members of the Spec in the order of their ports.
func (s *Spec) Members() []Member {
	out := make([]Member, 0, len(s.Protocols)*int(s.ports()))
	for offset := range s.ports() {
		for _, p := range s.Protocols {
			out = append(out, Member{p, offset})
		}
	}
	return out
}

// ports returns the number of internal ports.
func (s *Spec) ports() uint16 { return max(s.Count, 1) }

// internalPort returns the internal port of a member. It ignores SamePort.
func (s *Spec) internalPort(m Member) uint16 { return s.Internal.Port() + m.Offset }

// request returns the request to a backend for a member and its external port.
func (s *Spec) request(m Member, external uint16) backends.Request {
	internal := netip.AddrPortFrom(s.Internal.Addr(), s.internalPort(m))
	if s.SamePort {
		internal = netip.AddrPortFrom(internal.Addr(), external)
	}
	return backends.Request{
		Protocol: m.Protocol, Internal: internal, External: netip.AddrPortFrom(s.Address, external),
		Exact: s.Exact, Remote: s.Remote, Lifetime: s.Lifetime, Description: s.Description,
	}
}

// sharesWith reports whether handles with the specs s and t can share an entry.
func (s *Spec) sharesWith(t *Spec) bool { return s.sameEndpoint(t) && s.Lifetime == t.Lifetime }

// sameEndpoint is sharesWith without the comparison of lifetimes.
func (s *Spec) sameEndpoint(t *Spec) bool {
	return s.External == t.External && s.Address == t.Address && s.Exact == t.Exact && s.SamePort == t.SamePort && s.Remote == t.Remote
}

// Status is an immutable snapshot of a handle.
type Status struct {
	Spec        *Spec
	Granted     []*backends.Mapping // in the order of Spec.Members; kept while Lost
	Lost        bool                // the gateway no longer has the mappings, as far as the owner can tell
	Closed      bool
	Err         error // error of the last request, or nil
	NextRequest time.Time
	Since       time.Time // time of the last event, except Failed
	Reason      string    // reason of that event
}

// Grants returns copies of the granted mappings. It includes mappings that have expired since
// the last change of status.
func (s *Status) Grants() []backends.Mapping {
	if s.Lost {
		return nil
	}
	var granted []backends.Mapping
	for _, g := range s.Granted {
		granted = append(granted, *g)
	}
	return granted
}

// IsActive reports whether the granted mappings are active, as far as the owner can tell. It
// returns false as soon as a lifetime has ended, which may be a moment before the event.
func (s *Status) IsActive() bool {
	at := s.Expires()
	return len(s.Granted) > 0 && !s.Lost && (at.IsZero() || time.Now().Before(at))
}

// Expires returns the earliest end of a granted lifetime, or the zero Time.
func (s *Status) Expires() (earliest time.Time) {
	for _, g := range s.Granted {
		earliest = earlier(earliest, g.Expires())
	}
	return earliest
}

// Records returns the records of the granted mappings for the state file.
func (h *Handle) Records() (out []state.Record) {
	s := h.Status()
	if !s.IsActive() {
		return nil
	}
	for i, m := range s.Spec.Members() {
		if i < len(s.Granted) {
			r := state.Record{Port: s.Spec.Internal.Port(), Mapping: *s.Granted[i]}
			if s.Spec.ports() > 1 {
				r.Port, r.Count = s.Granted[i].Internal.Port()-m.Offset, s.Spec.ports()
			}
			out = append(out, r)
		}
	}
	return out
}

// earlier returns the earlier of two times. The zero Time means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// equal reports whether two statuses are the same for a caller.
func (s *Status) equal(t *Status) bool {
	return s.Spec == t.Spec && s.Lost == t.Lost && s.Closed == t.Closed && s.NextRequest.Equal(t.NextRequest) && s.Since.Equal(t.Since) &&
		fmt.Sprint(s.Err) == fmt.Sprint(t.Err) && slices.Equal(s.Granted, t.Granted)
}

// Handle is a set of mappings that a client keeps alive. The owner to which it is attached
// updates it and publishes each change.
type Handle struct {
	Mapping any // the Forwarder's own value for the handle; this package does not use it
	sink    Sink
	status  atomic.Pointer[Status]
	changed atomic.Pointer[chan struct{}]
	client  atomic.Pointer[Client]        // the client to which it is attached, or nil
	closing atomic.Pointer[Closing]       // nil until BeginClose
	done    atomic.Pointer[chan struct{}] // what Done returns; nil: Done was not called, and the handle is open

	// Only code on the owner's loop uses these fields.
	backend       *Backend                // the backend that granted the handle; nil if it is not granted
	oldClients    []*Client               // clients of former gateways that may still have its mappings
	wasGranted    bool                    // it was granted at least once
	preferred     uint16                  // external port of the last grant, which is requested again; 0: none
	failures      int                     // consecutive failed requests
	nextRequest   time.Time               // if it is not granted: the time of the next request
	reason        string                  // the reason for the next request
	expiredGrants []backends.Mapping      // mappings that expired without an event
	lostBefore    time.Time               // grants before this time count as lost
	cancel        context.CancelCauseFunc // ends the flow for the handle between two requests
}

// NewHandle returns a handle that is not attached to a client.
func NewHandle(sink Sink, s *Spec, mapping any) *Handle {
	h := &Handle{Mapping: mapping, sink: sink}
	h.status.Store(&Status{Spec: s})
	return h
}

// Status returns the current status.
func (h *Handle) Status() *Status { return h.status.Load() }

func (h *Handle) spec() *Spec { return h.status.Load().Spec }

// Port returns the internal port that the handle requests. For a range it returns the first
// port.
func (h *Handle) Port() uint16 { return h.spec().Internal.Port() }

// Client returns the client to which the handle is attached, or nil.
func (h *Handle) Client() *Client { return h.client.Load() }

// Done returns a channel that is closed when the handle is closed.
func (h *Handle) Done() <-chan struct{} {
	c := make(chan struct{})
	if !h.done.CompareAndSwap(nil, &c) {
		return *h.done.Load()
	}
	return c
}

// closedChan is the channel that Done returns for a closed handle.
var closedChan = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// LastReply returns the result of Client.LastReply, or the zero Time if the handle is not
// attached.
func (h *Handle) LastReply() time.Time {
	if c := h.client.Load(); c != nil {
		return c.LastReply()
	}
	return time.Time{}
}

// Changed returns a channel that is closed at the next change of Status.
func (h *Handle) Changed() <-chan struct{} {
	for {
		if c := h.changed.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if h.changed.CompareAndSwap(nil, &c) {
			if h.status.Load().Closed { // the status will not change again
				h.store(h.status.Load())
			}
			return c
		}
	}
}

// store sets the status and closes the channel that Changed returned.
func (h *Handle) store(s *Status) {
	h.status.Store(s)
	if c := h.changed.Swap(nil); c != nil {
		close(*c)
	}
}

// Kind is the kind of an event of a handle.
type Kind uint8

// The kinds have the same values and order as the EventKinds of package forward.
const (
	Mapped Kind = iota + 1
	Changed
	Lost
	Restored
	Failed
)

// publish changes the status. If the new status differs, publish stores it and notifies the
// sink.
func (h *Handle) publish(change func(*Status), reason string) {
	before := h.status.Load()
	after := *before
	change(&after)
	grantsBefore, grantsAfter := before.Grants(), after.Grants()
	if h.expiredGrants != nil {
		grantsBefore, h.expiredGrants = h.expiredGrants, nil
	}
	kind, now := h.kindOf(grantsBefore, grantsAfter), time.Now()
	if len(grantsAfter) > 0 {
		h.wasGranted, h.preferred = true, grantsAfter[0].External.Port()
	}
	if kind == 0 && after.Err != nil && !isSameReason(before.Err, after.Err) {
		kind, reason = Failed, after.Err.Error()
	}
	if kind != 0 && kind != Failed {
		if after.Err != nil && kind == Lost {
			reason = after.Err.Error()
		}
		after.Since, after.Reason = now, reason
	}
	if !after.equal(before) {
		h.store(&after)
		h.sink.HandleChanged(h, kind, grantsBefore, grantsAfter, reason, now)
	}
}

// isSameReason reports whether two errors differ at most in numbers. Each attempt at a range
// of ports can name other ports.
func isSameReason(before, after error) bool {
	withoutDigits := func(err error) string {
		return strings.Map(func(r rune) rune {
			if '0' <= r && r <= '9' {
				return -1
			}
			return r
		}, err.Error())
	}
	return before != nil && withoutDigits(before) == withoutDigits(after)
}

// kindOf returns the kind of event that changed the grants, or 0.
func (h *Handle) kindOf(before, after []backends.Mapping) Kind {
	switch {
	case len(after) == 0 && len(before) > 0:
		return Lost
	case len(after) == 0:
		return 0
	case !h.wasGranted:
		return Mapped
	case len(before) == 0:
		return Restored
	case !slices.EqualFunc(before, after, func(a, b backends.Mapping) bool {
		return a.External == b.External && a.Internal == b.Internal && a.Gateway == b.Gateway && a.Backend == b.Backend
	}):
		return Changed
	}
	return 0
}

// Fail records why a handle without a client cannot be requested, and when the next attempt
// is due. It does nothing if the handle is attached.
func (h *Handle) Fail(err error, next time.Time) {
	if h.client.Load() == nil {
		h.publish(func(s *Status) { s.Err, s.NextRequest = err, next }, err.Error())
	}
}

// isAttached reports whether a handle is open and attached to this owner. Only then may the
// owner change it.
func (o *Owner) isAttached(h *Handle) bool {
	c := h.client.Load()
	return c != nil && c.owner == o && !h.Status().Closed
}

// isUnusable reports whether the handle's gateway is not on the default route. It returns
// false for a handle with Once, which keeps its state until it expires.
func (h *Handle) isUnusable() bool { return h.client.Load().unusable && !h.spec().Once }

// entries returns the active entries of the handle, in the order of Spec.Members.
func (h *Handle) entries() (out []*entry) {
	c := h.client.Load()
	if h.backend == nil || c == nil {
		return nil
	}
	g := c.owner.groupOf(h.spec())
	for _, m := range h.spec().Members() {
		if e := g.entry(h.backend.name, m); e != nil && e.state == active && e.isHeldBy(h) {
			out = append(out, e)
		}
	}
	return out
}

// isIntact reports whether the handle's entries satisfy its spec.
func (h *Handle) isIntact() bool {
	var granted []*backends.Mapping
	for _, e := range h.entries() {
		granted = append(granted, e.granted)
	}
	return !h.isUnusable() && len(granted) == len(h.spec().Members()) && h.spec().checkPorts(granted) == nil
}

// updateStatus publishes the state of a handle's entries. If they no longer satisfy its spec
// as one unit, the handle is requested again. If they are active here, its mappings at former
// gateways are deleted.
func (o *Owner) updateStatus(h *Handle, reason string) {
	if !o.isAttached(h) {
		return
	}
	entries := h.entries()
	if len(entries) < len(h.spec().Members()) {
		return
	}
	var (
		granted  []*backends.Mapping
		lost     = h.isUnusable()
		doubtful bool
		failure  error
		next     time.Time
	)
	for _, e := range entries {
		granted, next = append(granted, e.granted), earlier(next, e.nextRequest)
		lost = lost || e.lost || e.granted.Granted.Before(h.lostBefore)
		doubtful = doubtful || e.doubtful
		failure = cmp.Or(failure, e.err)
	}
	if err := h.spec().checkPorts(granted); err != nil { // a unit is granted as a whole or not at all, also after a renewal
		if failure == nil {
			h.nextRequest, h.reason = time.Now(), reason
		}
		lost, failure = true, cmp.Or(failure, err)
	} else if h.isUnusable() {
		failure = h.Status().Err
	}
	if !lost && !doubtful { // before publish: an event handler may close the handle
		h.releaseOldGateways(true)
	}
	h.publish(func(s *Status) { s.Granted, s.Lost, s.Err, s.NextRequest = granted, lost, failure, next }, reason)
}

// setSpec replaces the spec of a handle. It fails with a ConflictError if another handle
// shares an entry and the new spec does not fit.
func (h *Handle) setSpec(s *Spec) error {
	for _, e := range h.entries() {
		if len(e.holders) > 1 && !e.spec.sharesWith(s) {
			return &ConflictError{Protocol: e.Protocol, Port: e.requestedInternal()}
		}
	}
	for _, e := range h.entries() {
		e.spec = s
	}
	h.publish(func(now *Status) { now.Spec = s }, "")
	return nil
}
