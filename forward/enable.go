package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
)

// Enable makes the gateway forward a port to this host, and keeps it so until
// the mapping is closed. Without options: TCP, an internal port that is free
// just now, and the same external port if the gateway allows. Where the
// external port is taken, or below 1024 and refused, it tries up to eight
// random ones from 49152, unless Exact.
//
// Two mappings with the same protocol and internal port are one on the gateway:
// it goes when the last of them is closed, and they must agree, else the second
// fails with backends.ErrConflict.
//
// A call that its context ends may leave a mapping on the gateway for its
// lifetime: the answer was not awaited.
func (f *Forwarder) Enable(ctx context.Context, opts ...Option) (*Mapping, error) {
	w, err := f.newWish(opts)
	if err != nil {
		return nil, err
	}
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if w.internal.Port() == 0 {
		port, err := w.freePort()
		if err != nil {
			return nil, err
		}
		w.internal = netip.AddrPortFrom(w.internal.Addr(), port)
	}
	m := newMapping(f, w)
	if w.background {
		f.hold(m)
		f.scheduler.set(m, time.Now())
		return m, nil
	}
	f.hold(m) // what happens to the gateway meanwhile is about it too
	if err := m.ensure(ctx, "enabled"); err != nil {
		f.release(m)
		m.abandon()
		return nil, err
	}
	m.reschedule()
	return m, nil
}

// freePort returns a local port for a wish without one. SamePort with an
// external port has one already.
func (w *wish) freePort() (uint16, error) {
	if w.samePort && w.external != 0 {
		return w.external, nil
	}
	return openLocalPort(w.protocols)
}

// leg is one protocol's part of a mapping.
type leg struct {
	candidate *candidate
	lease     *lease
	asked     uint16            // the external port
	granted   *backends.Mapping // never changed, but exchanged
}

// establish gets the wish granted by the first backend that can and will. The
// preferred external port is that of an earlier grant, or 0.
func (f *Forwarder) establish(ctx context.Context, w *wish, preferred uint16) ([]leg, error) {
	f.ledger.open()
	way, err := f.choose(ctx, f.familyFor(w))
	if err != nil {
		return nil, err
	}
	var failures []error
	silent := true
	candidates := f.inOrder(way)
	for i, c := range candidates {
		if len(failures) > 0 && ctx.Err() != nil {
			break // it would only seem to be silent
		}
		legs, err := f.attempt(ctx, way, c, w, preferred, !f.anyHopeful(candidates[i+1:]))
		if err == nil {
			f.watch(c)
			return legs, nil
		}
		if ctx.Err() != nil && !isOwnTimeout(ctx) {
			return nil, err
		}
		if w.background && !errors.Is(err, backends.ErrNoReply) && !errors.Is(err, backends.ErrUnsupported) {
			f.watch(c) // it may announce that it can now
		}
		silent = silent && errors.Is(err, backends.ErrNoReply)
		failures = append(failures, err)
		if ours := (*termsError)(nil); errors.As(err, &ours) {
			break
		}
	}
	if silent {
		f.reconsider(way)
	}
	return nil, newError(failures, true)
}

// anyHopeful reports whether one of the candidates could answer, as far as is
// known.
func (f *Forwarder) anyHopeful(cs []*candidate) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(cs, func(c *candidate) bool {
		return c.verdict != fails || time.Since(c.judged) > failureAge
	})
}

// oneOfSeveral bounds how long one backend is waited for while there are others
// to ask.
const oneOfSeveral = 4 * time.Second

// share bounds an attempt that others are to follow.
func share(ctx context.Context) (context.Context, context.CancelFunc) {
	d := oneOfSeveral
	if at, has := ctx.Deadline(); has {
		d = min(d, time.Until(at)/2)
	}
	return context.WithTimeoutCause(ctx, d, &timeoutError{d})
}

// attempt asks one backend, if it can express the wish and its gateway answers.
func (f *Forwarder) attempt(ctx context.Context, way *way, c *candidate, w *wish, preferred uint16, last bool) ([]leg, error) {
	if preferred == 0 && w.external == 0 {
		preferred = f.ledger.inheritedPort(way, c, w)
	}
	port := w.firstPort(preferred)
	for _, p := range w.protocols {
		if err := c.backend.Supports(w.request(p, port)); err != nil {
			return nil, err
		}
	}
	if !last {
		var cancel context.CancelFunc
		ctx, cancel = share(ctx)
		defer cancel()
	}
	if err := f.ready(ctx, way, c); err != nil {
		if c.opener.searches && errors.Is(err, backends.ErrNoReply) && len(f.speaking(way)) > 0 {
			// The gateway answers: it only has no such device.
			err = c.notFound(backends.ErrUnsupported)
		}
		return nil, err
	}
	return f.hunt(ctx, way, c, w, port)
}

// firstPort is the external port to try first.
func (w *wish) firstPort(preferred uint16) uint16 {
	switch {
	case preferred != 0 && !w.exact:
		return preferred
	case w.external != 0:
		return w.external
	}
	return w.internal.Port()
}

// reconsider makes the next call probe the way anew.
func (f *Forwarder) reconsider(w *way) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.forget()
}

const (
	maxHops     = 8 // random external ports, after the wish
	maxUnitHops = 3 // where several numbers must be one
)

// hunt asks one backend for an external port, and for others where that is
// taken.
func (f *Forwarder) hunt(ctx context.Context, way *way, c *candidate, w *wish, port uint16) ([]leg, error) {
	for hop := 0; ; hop++ {
		legs, err := f.try(ctx, way, c, w, port)
		if err == nil {
			return legs, nil
		}
		var other bool
		if port, other = w.nextPort(port, hop, err); !other {
			return nil, err
		}
	}
}

// unevenError says that the gateway gives another number where several must be
// one.
type unevenError struct {
	wanted, offered uint16
}

func (e *unevenError) Error() string {
	return fmt.Sprintf("%v: the gateway gives port %d where %d is needed", backends.ErrConflict, e.offered, e.wanted)
}

func (e *unevenError) Unwrap() error { return backends.ErrConflict }

// nextPort returns the external port to try after one that failed, or false.
func (w *wish) nextPort(port uint16, hop int, err error) (uint16, bool) {
	var uneven *unevenError
	isUneven := errors.As(err, &uneven)
	refusedLow := errors.Is(err, backends.ErrNotAuthorized) && port < 1024
	limit := maxHops
	if isUneven {
		limit = maxUnitHops
	}
	switch {
	case w.exact || hop >= limit:
		return 0, false
	case isUneven && hop == 0:
		return uneven.offered, true
	case errors.Is(err, backends.ErrConflict) || refusedLow:
		return RandomPort(), true
	}
	return 0, false
}

// try asks one backend for all protocols of the wish at one external port, and
// gives back what it got where it did not get all.
func (f *Forwarder) try(ctx context.Context, way *way, c *candidate, w *wish, port uint16) (legs []leg, err error) {
	defer func() {
		if err != nil {
			f.giveBack(ctx, w.internal.Port(), legs)
			legs = nil
		}
	}()
	for _, p := range w.protocols {
		r := w.request(p, port)
		old := f.ledger.inherited(way, c, p, w)
		l, m, err := join(ctx, c.backend, way.identity(c, p, r.Internal), w.terms(), r, old)
		if err != nil {
			return legs, err
		}
		f.ledger.done(old)
		legs = append(legs, leg{candidate: c, lease: l, asked: port, granted: m})
		if err := w.even(legs); err != nil {
			return legs, err
		}
		port = m.External.Port()
	}
	return legs, nil
}

// elsewhereError says that the gateway forwards to another internal port than was
// asked for, as those of VPN providers do.
type elsewhereError struct {
	port uint16
}

func (e *elsewhereError) Error() string {
	return fmt.Sprintf("%v: the gateway forwards port %d to port %d of this host only: ask for SamePort", backends.ErrUnsupported, e.port, e.port)
}

func (e *elsewhereError) Unwrap() error { return backends.ErrUnsupported }

// even says whether the numbers that must be one are.
func (w *wish) even(legs []leg) error {
	first := legs[0].granted
	for _, l := range legs {
		offered := l.granted.External.Port()
		if !w.samePort && l.granted.Internal.Port() != w.internal.Port() {
			return &elsewhereError{offered}
		}
		if offered != first.External.Port() {
			return &unevenError{wanted: first.External.Port(), offered: offered}
		}
		if w.samePort && offered != l.granted.Internal.Port() {
			return &unevenError{wanted: l.granted.Internal.Port(), offered: offered}
		}
	}
	return nil
}

// giveBackTime bounds the deletion of what a failed attempt left, which goes on
// when the attempt's context has ended.
const giveBackTime = time.Second

// giveBack deletes what a failed attempt got for an internal port.
func (f *Forwarder) giveBack(ctx context.Context, port uint16, legs []leg) {
	for _, l := range legs {
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), giveBackTime, backends.ErrNoReply)
		if err := f.leaveAll(ctx, port, []leg{l}); err != nil {
			f.log.Warn("a mapping of a failed attempt stays for now", "err", err)
		}
		cancel()
	}
}

// leaveAll gives up every leg for an internal port, whatever becomes of the
// others.
func (f *Forwarder) leaveAll(ctx context.Context, port uint16, legs []leg) error {
	var (
		errs []error
		left []leg
	)
	for _, l := range legs {
		if err := l.lease.leave(ctx, l.candidate.backend); err != nil {
			errs, left = append(errs, err), append(left, l)
		}
	}
	f.debts.owe(port, left)
	return errors.Join(errs...)
}
