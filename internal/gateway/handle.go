package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
)

// Params are what to request for each protocol of a mapping.
type Params struct {
	Internal    netip.AddrPort // the zero address: this host
	External    uint16         // suggested; 0: the internal port
	Exact       bool           // no other external port
	SamePort    bool           // the internal port follows the external port
	Once        bool           // not renewed
	Remote      netip.AddrPort // the only peer, or the zero value
	Lifetime    time.Duration
	Description string
}

// Request returns what to ask a backend for.
func (p *Params) Request(protocol backends.Protocol, external uint16) backends.Request {
	internal := p.Internal
	if p.SamePort {
		internal = netip.AddrPortFrom(internal.Addr(), external)
	}
	return backends.Request{
		Protocol: protocol, Internal: internal, External: netip.AddrPortFrom(netip.Addr{}, external),
		Exact: p.Exact, Remote: p.Remote, Lifetime: p.Lifetime, Description: p.Description,
	}
}

// SameTerms reports whether handles with p and q can share an entry.
func (p *Params) SameTerms(q *Params) bool {
	return p.External == q.External && p.Exact == q.Exact && p.SamePort == q.SamePort && p.Remote == q.Remote && p.Lifetime == q.Lifetime
}

// samePlace reports whether what was granted for q serves p, but for its lifetime.
func (p *Params) samePlace(q *Params) bool {
	at := *p
	at.Lifetime = q.Lifetime
	return p.Internal == q.Internal && at.SameTerms(q)
}

// Wish is what a handle wants to be kept alive. It never changes.
type Wish struct {
	Params
	Protocols  []backends.Protocol // one, or several as a unit with one external port
	Background bool                // tried again also if the first request fails
	Timeout    time.Duration       // of a request
	Wait       time.Duration       // of a probe
}

// Status is what a handle is. It never changes.
type Status struct {
	Wish    *Wish
	Granted []*backends.Mapping // in the order of Wish.Protocols, also while Lost
	Lost    bool                // the gateway has it no more, as far as is known
	Closed  bool
	Err     error // of the last request, or nil
	Next    time.Time
	Since   time.Time // of the last event
	Reason  string    // of that
}

// State returns copies of what is granted, also of what has run out and is not missed yet.
func (s *Status) State() []backends.Mapping {
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
func (s *Status) Stands() bool {
	at := s.Expires()
	return len(s.Granted) > 0 && !s.Lost && (at.IsZero() || time.Now().Before(at))
}

// Expires is the earliest end of what is granted, or the zero Time.
func (s *Status) Expires() time.Time {
	var earliest time.Time
	for _, g := range s.Granted {
		if at := g.Expires(); !at.IsZero() && (earliest.IsZero() || at.Before(earliest)) {
			earliest = at
		}
	}
	return earliest
}

// Handle is a mapping that a client keeps alive. The owner that it is attached to changes
// it, and publishes each change.
type Handle struct {
	Port    uint16 // the internal port that it was made with
	Mapping any    // what its user knows it by
	sink    Sink
	status  atomic.Pointer[Status]
	changed atomic.Pointer[chan struct{}]
	client  atomic.Pointer[Client] // of the owner that it is attached to; nil: none
	closing atomic.Pointer[Closing]

	// The owner's loop owns what is next.
	backend   *Backend  // that granted it; nil: nothing is granted
	left      []*Client // of gateways that still have it, and are not the default route
	known     bool      // granted at least once
	unusable  bool      // the gateway is not the default route
	preferred uint16
	failures  int
	due       time.Time               // of the next request, if nothing is granted
	reason    string                  // why it is due
	silent    []backends.Mapping      // what ran out without an event
	lostAt    time.Time               // what was granted before that counts as lost
	stop      context.CancelCauseFunc // ends the op about it, between requests
}

// NewHandle returns a handle that is attached to nothing.
func NewHandle(sink Sink, w *Wish, mapping any) *Handle {
	h := &Handle{Port: w.Internal.Port(), Mapping: mapping, sink: sink}
	h.status.Store(&Status{Wish: w})
	return h
}

// Status returns what the handle is now.
func (h *Handle) Status() *Status { return h.status.Load() }

func (h *Handle) wish() *Wish { return h.status.Load().Wish }

// Changed returns a channel that is closed at the next change of Status.
func (h *Handle) Changed() <-chan struct{} {
	for {
		if c := h.changed.Load(); c != nil {
			return *c
		}
		c := make(chan struct{})
		if h.changed.CompareAndSwap(nil, &c) {
			if h.status.Load().Closed { // nothing more will change
				h.notify()
			}
			return c
		}
	}
}

func (h *Handle) notify() {
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
)

// publish stores another status, closes what Changed handed out if it differs, and tells
// the sink what happened.
func (h *Handle) publish(change func(*Status), reason string) {
	before := h.status.Load()
	after := *before
	change(&after)
	was, is := before.State(), after.State()
	if h.silent != nil {
		was, h.silent = h.silent, nil
	}
	kind, now := h.kindOf(was, is), time.Now()
	if len(is) > 0 {
		h.known, h.preferred = true, is[0].External.Port()
	}
	if kind != 0 {
		if after.Err != nil && kind == Lost {
			reason = after.Err.Error()
		}
		after.Since, after.Reason = now, reason
	}
	if after.equal(before) {
		return
	}
	h.status.Store(&after)
	h.notify()
	h.sink.Happened(h, kind, was, is, reason, now)
}

// kindOf compares what was granted before and after.
func (h *Handle) kindOf(before, after []backends.Mapping) Kind {
	switch {
	case len(after) == 0 && len(before) > 0:
		return Lost
	case len(after) == 0:
		return 0
	case !h.known:
		return Mapped
	case len(before) == 0:
		return Restored
	case !slices.EqualFunc(before, after, sameEndpoints):
		return Changed
	}
	return 0
}

func sameEndpoints(a, b backends.Mapping) bool {
	return a.External == b.External && a.Internal == b.Internal && a.Gateway == b.Gateway && a.Backend == b.Backend
}

// equal reports whether two statuses tell the same.
func (s *Status) equal(t *Status) bool {
	return s.Wish == t.Wish && s.Lost == t.Lost && s.Closed == t.Closed && s.Next.Equal(t.Next) && s.Since.Equal(t.Since) &&
		fmt.Sprint(s.Err) == fmt.Sprint(t.Err) && slices.Equal(s.Granted, t.Granted)
}

// entries returns what the handle was granted, in the order of its protocols.
func (h *Handle) entries() (out []*entry) {
	c := h.client.Load()
	if h.backend == nil || c == nil {
		return nil
	}
	g := c.owner.groupOf(h.wish().Internal)
	for _, p := range h.wish().Protocols {
		if e := g.entry(h.backend.name, p); e != nil && slices.Contains(e.holders, h) {
			out = append(out, e)
		}
	}
	return out
}

// has reports whether a handle is attached to the owner. If not, it is not the owner's to
// change.
func (o *Owner) has(h *Handle) bool {
	c := h.client.Load()
	return c != nil && c.owner == o
}

// refresh publishes what a handle's entries are now. If they do not fit together any
// more, the handle is due.
func (o *Owner) refresh(h *Handle, reason string) {
	if !o.has(h) || h.Status().Closed {
		return
	}
	entries := h.entries()
	if len(entries) < len(h.wish().Protocols) {
		return
	}
	granted, lost := make([]*backends.Mapping, len(entries)), h.unusable
	var (
		failure error
		next    time.Time
	)
	for i, e := range entries {
		granted[i] = e.granted
		lost = lost || e.lost || e.granted.Granted.Before(h.lostAt)
		if failure == nil {
			failure = e.err
		}
		if next.IsZero() || !e.due.IsZero() && e.due.Before(next) {
			next = e.due
		}
	}
	if err := h.wish().checkPorts(granted); err != nil { // one unit or none, also after a renewal
		if failure == nil {
			h.due, h.reason = time.Now(), reason
		}
		h.publish(func(s *Status) { s.Granted, s.Lost, s.Err, s.Next = granted, true, cmp.Or(failure, err), next }, reason)
		return
	}
	if h.unusable {
		failure = h.Status().Err
	}
	h.publish(func(s *Status) { s.Granted, s.Lost, s.Err, s.Next = granted, lost, failure, next }, reason)
}

// isDue reports whether the handle is to be requested anew.
func (h *Handle) isDue(now time.Time) bool { return !h.due.IsZero() && !h.due.After(now) }

// nextPort returns the external port to try after one that failed, or false.
func (w *Wish) nextPort(port uint16, attempt int, err error) (uint16, bool) {
	const (
		maxPorts     = 8 // random ones, after the wish
		maxUnitPorts = 3 // if several numbers must be one
	)
	var (
		mismatch *portMismatchError
		ours     *ConflictError
	)
	isMismatch := errors.As(err, &mismatch)
	refusedLow := errors.Is(err, backends.ErrNotAuthorized) && port < 1024
	switch {
	case w.Exact || errors.As(err, &ours) || attempt >= maxPorts || isMismatch && attempt >= maxUnitPorts:
		return 0, false
	case isMismatch && attempt == 0:
		return mismatch.offered, true
	case errors.Is(err, backends.ErrConflict) || refusedLow:
		return RandomPort(), true
	}
	return 0, false
}

// firstPort is the external port to try first.
func (w *Wish) firstPort(preferred uint16) uint16 {
	switch {
	case preferred != 0 && !w.Exact:
		return preferred
	case w.External != 0:
		return w.External
	}
	return w.Internal.Port()
}

// checkPorts says whether the numbers that must be one are.
func (w *Wish) checkPorts(granted []*backends.Mapping) error {
	first := granted[0].External.Port()
	for _, g := range granted {
		switch offered := g.External.Port(); {
		case !w.SamePort && g.Internal.Port() != w.Internal.Port():
			// The gateways of VPN providers do so.
			return fmt.Errorf("%w: the gateway forwards port %d to port %d of this host only: ask for SamePort", backends.ErrUnsupported, offered, offered)
		case offered != first:
			return &portMismatchError{wanted: first, offered: offered}
		case w.SamePort && offered != g.Internal.Port():
			return &portMismatchError{wanted: g.Internal.Port(), offered: offered}
		}
	}
	return nil
}

// portMismatchError says that the gateway gives another number if several must be one.
type portMismatchError struct {
	wanted, offered uint16
}

func (e *portMismatchError) Error() string {
	return fmt.Sprintf("%v: the gateway gives port %d where %d is needed", backends.ErrConflict, e.offered, e.wanted)
}

func (e *portMismatchError) Unwrap() error { return backends.ErrConflict }

// ConflictError says that this program holds the endpoint on other terms or by
// another backend: no other backend is to be tricked into a second mapping.
type ConflictError struct {
	Protocol backends.Protocol
	Port     uint16
	Backend  string // that holds it, if that is the conflict
}

func (e *ConflictError) Error() string {
	how := "on other terms"
	if e.Backend != "" {
		how = "by " + e.Backend
	}
	return fmt.Sprintf("%v: this program holds %v port %d already, %s", backends.ErrConflict, e.Protocol, e.Port, how)
}

func (e *ConflictError) Unwrap() error { return backends.ErrConflict }

// isIntact reports whether what the handle was granted serves its wish.
func (h *Handle) isIntact() bool {
	var granted []*backends.Mapping
	for _, e := range h.entries() {
		granted = append(granted, e.granted)
	}
	return !h.unusable && len(granted) == len(h.wish().Protocols) && h.wish().checkPorts(granted) == nil
}

// The dynamic ports (RFC 6335, section 6).
const (
	firstDynamicPort = 49152
	lastDynamicPort  = 65535
)

// RandomPort returns a random port from 49152 to 65535.
func RandomPort() uint16 {
	return uint16(firstDynamicPort + rand.IntN(lastDynamicPort-firstDynamicPort+1)) //nolint:gosec // in range; a port is no secret
}
