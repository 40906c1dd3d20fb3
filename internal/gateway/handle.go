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

// Spec is what a handle wants to be kept alive. It never changes once a handle has it.
type Spec struct {
	Protocols      []backends.Protocol // one, or several as a unit with one external port
	Internal       netip.AddrPort      // the zero address: this host
	Count          uint16              // of ports, from that of Internal, as a unit; 0: one
	External       uint16              // suggested, for the first port; 0: the internal port
	Address        netip.Addr          // suggested external address, or the zero Addr
	Exact          bool                // no other external port
	SamePort       bool                // the internal port follows the external port
	Remote         netip.AddrPort      // the only peer, or the zero value
	Lifetime       time.Duration
	RenewEvery     time.Duration // 0: at half of the granted lifetime
	Description    string
	Once           bool          // not renewed
	Background     bool          // tried again also if the first request fails
	RequestTimeout time.Duration // of a request
	ProbeTimeout   time.Duration // of a probe
}

// Member is one of the mappings that a Spec is made of.
type Member struct {
	Protocol backends.Protocol
	Offset   uint16 // of its port, from the first
}

// Members returns the mappings that the Spec is made of, in the order of their ports.
func (s *Spec) Members() []Member {
	out := make([]Member, 0, len(s.Protocols)*int(s.ports()))
	for offset := range s.ports() {
		for _, p := range s.Protocols {
			out = append(out, Member{p, offset})
		}
	}
	return out
}

// ports is the number of internal ports.
func (s *Spec) ports() uint16 { return max(s.Count, 1) }

// internalPort returns the internal port of a member, unless SamePort changes it.
func (s *Spec) internalPort(m Member) uint16 { return s.Internal.Port() + m.Offset }

// request returns what to ask a backend for, with the external port of the member.
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

// sharesWith reports whether handles with s and t can share an entry.
func (s *Spec) sharesWith(t *Spec) bool { return s.sameEndpoint(t) && s.Lifetime == t.Lifetime }

// samePlace is sharesWith, but for the lifetime.
func (s *Spec) sameEndpoint(t *Spec) bool {
	return s.External == t.External && s.Address == t.Address && s.Exact == t.Exact && s.SamePort == t.SamePort && s.Remote == t.Remote
}

// Status is what a handle is. It never changes.
type Status struct {
	Spec        *Spec
	Granted     []*backends.Mapping // in the order of Spec.Members, also while Lost
	Lost        bool                // the gateway has it no more, as far as is known
	Closed      bool
	Err         error // of the last request, or nil
	NextRequest time.Time
	Since       time.Time // of the last event
	Reason      string    // of that
}

// Grants returns copies of what is granted, also of what has run out and is not missed yet.
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

// Stands reports whether what was granted still stands, as far as is known. What ran
// out does not: the event that tells of it may come a moment later.
func (s *Status) IsActive() bool {
	at := s.Expires()
	return len(s.Granted) > 0 && !s.Lost && (at.IsZero() || time.Now().Before(at))
}

// Expires is the earliest end of what is granted, or the zero Time.
func (s *Status) Expires() (earliest time.Time) {
	for _, g := range s.Granted {
		earliest = earlier(earliest, g.Expires())
	}
	return earliest
}

// Records returns what the state file has of the handle: what is granted.
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

// sooner returns the earlier of two times that are not zero.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// equal reports whether two statuses tell the same.
func (s *Status) equal(t *Status) bool {
	return s.Spec == t.Spec && s.Lost == t.Lost && s.Closed == t.Closed && s.NextRequest.Equal(t.NextRequest) && s.Since.Equal(t.Since) &&
		fmt.Sprint(s.Err) == fmt.Sprint(t.Err) && slices.Equal(s.Granted, t.Granted)
}

// Handle is a mapping that a client keeps alive. The owner that it is attached to changes
// it, and publishes each change.
type Handle struct {
	Mapping any // what its user knows it by
	sink    Sink
	status  atomic.Pointer[Status]
	changed atomic.Pointer[chan struct{}]
	client  atomic.Pointer[Client]        // of the owner that it is attached to; nil: none
	closing atomic.Pointer[Closing]       // nil until it is closed
	done    atomic.Pointer[chan struct{}] // what Done returns; nil: nobody asked, and it is open

	// The owner's loop owns what is next.
	backend       *Backend  // that granted it; nil: nothing is granted
	oldClients    []*Client // of gateways that still have it, and are not the default route
	wasGranted    bool      // granted at least once
	preferred     uint16
	failures      int
	nextRequest   time.Time               // of the next request, if nothing is granted
	reason        string                  // why it is due
	expiredGrants []backends.Mapping      // what ran out without an event
	lostBefore    time.Time               // what was granted before that counts as lost
	cancel        context.CancelCauseFunc // ends the flow about it, between requests
}

// NewHandle returns a handle that is attached to nothing.
func NewHandle(sink Sink, s *Spec, mapping any) *Handle {
	h := &Handle{Mapping: mapping, sink: sink}
	h.status.Store(&Status{Spec: s})
	return h
}

// Status returns what the handle is now.
func (h *Handle) Status() *Status { return h.status.Load() }

func (h *Handle) spec() *Spec { return h.status.Load().Spec }

// Port returns the internal port that the handle requests, the first one of a range.
func (h *Handle) Port() uint16 { return h.spec().Internal.Port() }

// Client returns the client that the handle is attached to, or nil.
func (h *Handle) Client() *Client { return h.client.Load() }

// Done returns a channel that is closed when the handle is closed.
func (h *Handle) Done() <-chan struct{} {
	c := make(chan struct{})
	if !h.done.CompareAndSwap(nil, &c) {
		return *h.done.Load()
	}
	return c
}

// ended is what Done returns of a handle that is closed.
var closedChan = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Answered is that of the client that the handle is attached to.
func (h *Handle) Answered() time.Time {
	if c := h.client.Load(); c != nil {
		return c.Answered()
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
			if h.status.Load().Closed { // nothing more will change
				h.store(h.status.Load())
			}
			return c
		}
	}
}

// store makes a status the handle's, and closes what Changed handed out.
func (h *Handle) store(s *Status) {
	h.status.Store(s)
	if c := h.changed.Swap(nil); c != nil {
		close(*c)
	}
}

// Kind is what happened to a handle.
type Kind uint8

// The kinds of events, in the order of package forward.
const (
	Mapped Kind = iota + 1
	Changed
	Lost
	Restored
	Failed
)

// publish stores another status if it differs, and tells the sink what happened.
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

// isSameReason reports whether an error repeats the one before, but for numbers: each
// attempt at a range can be about other ports.
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

// kindOf compares what was granted before and after.
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

// Fail records why a handle that is attached to nothing cannot be requested, and when that
// is tried next.
func (h *Handle) Fail(err error, next time.Time) {
	if h.client.Load() == nil {
		h.publish(func(s *Status) { s.Err, s.NextRequest = err, next }, err.Error())
	}
}

// has reports whether a handle is attached to the owner and open. If not, it is not the
// owner's to change.
func (o *Owner) isAttached(h *Handle) bool {
	c := h.client.Load()
	return c != nil && c.owner == o && !h.Status().Closed
}

// isUnusable reports whether the gateway that a handle is attached to is not the default
// route. What is not renewed stays as it is until it ends.
func (h *Handle) isUnusable() bool { return h.client.Load().unusable && !h.spec().Once }

// entries returns what the handle was granted, in the order of Spec.Members.
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

// isIntact reports whether what the handle was granted serves its spec.
func (h *Handle) isIntact() bool {
	var granted []*backends.Mapping
	for _, e := range h.entries() {
		granted = append(granted, e.granted)
	}
	return !h.isUnusable() && len(granted) == len(h.spec().Members()) && h.spec().checkPorts(granted) == nil
}

// refresh publishes what a handle's entries are now. If they do not fit together any
// more, the handle is due. What it has at gateways that were left goes when it stands.
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
	if err := h.spec().checkPorts(granted); err != nil { // one unit or none, also after a renewal
		if failure == nil {
			h.nextRequest, h.reason = time.Now(), reason
		}
		lost, failure = true, cmp.Or(failure, err)
	} else if h.isUnusable() {
		failure = h.Status().Err
	}
	if !lost && !doubtful { // before anybody is told, who may close the handle
		h.releaseOldGateways(true)
	}
	h.publish(func(s *Status) { s.Granted, s.Lost, s.Err, s.NextRequest = granted, lost, failure, next }, reason)
}

// setSpec changes what a handle is renewed with, unless another shares what it has.
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
