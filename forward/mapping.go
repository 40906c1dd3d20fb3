package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
)

// Mapping is a forwarded port that a Forwarder keeps alive: a live handle. What
// it tells changes as the gateway answers. Its methods may be called by several
// goroutines at once.
type Mapping struct {
	forwarder *Forwarder
	turn      turn // one changes it at a time
	grants    grants
	port      uint16 // the internal port it was enabled with
	job       job

	mu        sync.Mutex
	wish      wish
	legs      []leg     // written by who has the turn
	lost      bool      // the gateway has forgotten the legs, as far as we know
	doubt     bool      // the gateway may have forgotten them, and has not granted them again since
	known     bool      // granted at least once
	seniority seniority // among siblings
	preferred uint16    // the external port of the last grant, or 0
	closed    bool
	left      bool // closed, and whoever has the turn gives the legs up
	err       error
	failures  int
	next      time.Time
	changed   chan struct{}
	stop      context.CancelCauseFunc // ends what who has the turn does
	reason    string                  // why it is asked for next
	since     time.Time               // of the last event
	why       string                  // its reason
}

func newMapping(f *Forwarder, w wish) *Mapping {
	return &Mapping{forwarder: f, wish: w, port: w.internal.Port()}
}

func (m *Mapping) place() *job { return &m.job }

// State returns what the gateway granted: two mappings for Both, none before the
// first grant and while the mapping is lost.
func (m *Mapping) State() []backends.Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.stands() {
		return nil
	}
	return m.state()
}

// stands reports whether what was granted still stands, as far as we know. The
// try that comes when it runs out may have to wait for its turn, and so may the
// event that tells of the loss. m.mu is held.
func (m *Mapping) stands() bool {
	return !m.lost && len(m.legs) > 0 && !expired(m.legs, time.Now())
}

// state is what events tell: what stands, or has run out and not been missed
// yet. m.mu is held.
func (m *Mapping) state() []backends.Mapping {
	if m.lost {
		return nil
	}
	var granted []backends.Mapping
	for _, l := range m.legs {
		granted = append(granted, *l.granted)
	}
	return granted
}

// once reports whether the mapping is to be left for its lifetime.
func (m *Mapping) once() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wish.once
}

// aside reports whether it takes selectors to mean this mapping.
func (m *Mapping) aside() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wish.aside
}

// first is the first of State, or the zero value.
func (m *Mapping) first() backends.Mapping {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.stands() {
		return backends.Mapping{}
	}
	return *m.legs[0].granted
}

// External returns the address and port that the world reaches: the zero value
// before the first grant and while the mapping is lost. The address is the zero
// Addr where the gateway does not tell it.
func (m *Mapping) External() netip.AddrPort { return m.first().External }

// Internal returns where the connections arrive. Before the first grant the
// address may be the zero Addr.
func (m *Mapping) Internal() netip.AddrPort {
	if granted := m.first(); granted.Internal.IsValid() {
		return granted.Internal
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wish.internal
}

// Backend names the protocol that it was granted by, or is empty.
func (m *Mapping) Backend() string { return m.first().Backend }

// Gateway returns the gateway that granted it, or the zero value.
func (m *Mapping) Gateway() netip.AddrPort { return m.first().Gateway }

// Scope returns how far the external address reaches.
func (m *Mapping) Scope() backends.Scope { return backends.ScopeOf(m.External().Addr()) }

// Expires returns until when it was granted, or the zero Time where it has no
// end or is not granted. It is renewed long before.
func (m *Mapping) Expires() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.stands() {
		return time.Time{}
	}
	return expiry(m.legs)
}

// expiry is the earliest of the legs', or the zero Time.
func expiry(legs []leg) time.Time {
	var earliest time.Time
	for _, l := range legs {
		if at := l.granted.Expires(); !at.IsZero() && (earliest.IsZero() || at.Before(earliest)) {
			earliest = at
		}
	}
	return earliest
}

// Err returns why the last attempt to get or renew it failed, or nil where it
// did not. A mapping whose renewal failed still stands until it expires.
func (m *Mapping) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Since returns when what State tells last became so, and why: the Reason of that
// Event. Before the first grant it is the zero Time, and Err says why.
func (m *Mapping) Since() (at time.Time, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since, m.why
}

// NextTry returns when it is asked for next, or the zero Time: never.
func (m *Mapping) NextTry() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.next
}

// Changed returns a channel that is closed at the next change of what State,
// Err or the other methods tell, and when the mapping is closed. Call it before
// you read, so that no change is missed.
func (m *Mapping) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return over
	}
	if m.changed == nil {
		m.changed = make(chan struct{})
	}
	return m.changed
}

// over is what Changed returns of a closed mapping.
var over = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// notify closes the channel that Changed handed out. m.mu is held.
func (m *Mapping) notify() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// Wait returns nil as soon as the mapping is granted, ErrNoMapping when it is
// closed, or the cause of the context's end.
func (m *Mapping) Wait(ctx context.Context) error {
	for {
		changed := m.Changed()
		m.mu.Lock()
		closed, granted := m.closed, m.stands()
		m.mu.Unlock()
		switch {
		case closed:
			return fmt.Errorf("forward: %w: closed", ErrNoMapping)
		case granted:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Refresh asks for the mapping again now, in place, even where it has expired.
// Options change what is asked for: a longer lifetime and another description
// in place; another port, peer or internal address by taking the old mapping
// away first, and back again where the new one is refused. Another protocol
// fails with backends.ErrInvalid. After Close it fails with ErrNoMapping.
func (m *Mapping) Refresh(ctx context.Context, opts ...Option) error {
	ctx, end, err := m.forwarder.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	defer m.reschedule()
	if len(opts) > 0 {
		if err := m.alter(ctx, opts); err != nil {
			return err
		}
	}
	if err := m.askExternal(ctx); err != nil {
		return err
	}
	return m.ensure(ctx, "refreshed")
}

// askExternal makes the backend ask for the external address now: mappings that
// are granted in a burst may share an answer that is a moment old.
func (m *Mapping) askExternal(ctx context.Context) error {
	m.mu.Lock()
	legs := m.legs
	m.mu.Unlock()
	if len(legs) == 0 {
		return nil
	}
	_, err := legs[0].candidate.backend.ExternalAddr(ctx)
	if ctx.Err() != nil {
		return err
	}
	return nil // what it refuses to tell, it may map
}

// alter changes the wish. Where what it was granted as cannot serve the new
// one, the grant is given up.
func (m *Mapping) alter(ctx context.Context, opts []Option) error {
	if err := m.turn.take(ctx); err != nil {
		return err
	}
	defer m.give()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	m.mu.Lock()
	old, legs := m.wish, m.legs
	m.stop = stop
	closed := m.closed
	m.mu.Unlock()
	if closed {
		return fmt.Errorf("forward: %w: closed", ErrNoMapping)
	}
	altered := old
	altered.protocolGiven = false
	if err := altered.add(opts); err != nil {
		return err
	}
	altered.protocolGiven = old.protocolGiven
	switch {
	case !slices.Equal(altered.protocols, old.protocols):
		return fmt.Errorf("forward: %w: a mapping cannot change its protocol: enable another", backends.ErrInvalid)
	case altered.background != old.background || altered.once != old.once:
		return fmt.Errorf("forward: %w: Once and Background are for Enable", backends.ErrInvalid)
	}
	moved := altered.isElsewhere(&old)
	switch {
	case len(legs) == 0:
	case moved:
		legs, err := m.forwarder.exchange(ctx, legs, &old, &altered)
		m.settle(legs, err, "refreshed")
		if err != nil {
			return err
		}
	case altered.lifetime != old.lifetime:
		if err := agree(ctx, legs, old.terms(), altered.terms()); err != nil {
			return err
		}
	}
	m.mu.Lock()
	m.wish = altered
	if moved && len(legs) == 0 {
		m.preferred = 0
	}
	m.mu.Unlock()
	return nil
}

// isElsewhere reports whether the wish cannot be served by what another was
// granted.
func (w *wish) isElsewhere(other *wish) bool {
	mine, others := w.terms(), other.terms()
	mine.lifetime = others.lifetime
	return w.internal != other.internal || mine != others
}

// agree changes the terms of all legs, or of none.
func agree(ctx context.Context, legs []leg, old, altered terms) error {
	for i, l := range legs {
		if err := l.lease.agree(ctx, altered); err != nil {
			for _, changed := range legs[:i] {
				_ = changed.lease.agree(context.WithoutCancel(ctx), old) // nobody else has joined on those terms
			}
			return err
		}
	}
	return nil
}

// exchange gives legs up for those of another wish, or gets them back.
func (f *Forwarder) exchange(ctx context.Context, legs []leg, old, altered *wish) ([]leg, error) {
	port := legs[0].granted.External.Port()
	if err := f.leaveAll(ctx, old.internal.Port(), legs); err != nil {
		f.log.Warn("the mapping to change could not be deleted", "err", err)
	}
	made, err := f.establish(ctx, altered, 0)
	if err == nil {
		return made, nil
	}
	back, backErr := f.establish(ctx, old, port)
	if backErr != nil {
		return nil, errors.Join(err, fmt.Errorf("and the mapping as it was cannot be had back: %w", backErr))
	}
	return back, err
}

// answerTime is how long Close waits for the answer to a question under way. A
// request that may grant something has half of all the time there is.
const answerTime = 500 * time.Millisecond

// Close takes the mapping away from the gateway, within Config.Timeout. Where
// that fails it says so. A gateway that did not answer is asked again until the
// Forwarder is closed, and then once more: else the mapping is left to its
// lifetime. A second call returns nil.
func (m *Mapping) Close() error {
	return m.Shutdown(context.Background())
}

// Shutdown is Close within a context. One without a deadline is bounded by
// Config.Timeout.
func (m *Mapping) Shutdown(ctx context.Context) error {
	ctx, cancel := m.forwarder.bound(ctx)
	defer cancel()
	return m.close(ctx)
}

func (m *Mapping) close(ctx context.Context) error {
	m.mu.Lock()
	closed, stop := m.closed, m.stop
	m.closed = true
	m.next = time.Time{}
	m.notify()
	m.mu.Unlock()
	if closed {
		return nil
	}
	m.forwarder.closings.enter() // before Shutdown could overlook it
	defer m.forwarder.closings.leave()
	var unanswered atomic.Bool
	if stop != nil {
		defer m.hurry(ctx, stop, &unanswered)()
	}
	m.forwarder.release(m)
	if err := m.turn.take(ctx); err != nil {
		m.abandon()
		return fmt.Errorf("forward: mapping left to its lifetime: %w", err)
	}
	defer m.give()
	m.mu.Lock()
	legs := m.legs
	m.legs = nil
	m.mu.Unlock()
	err := m.forwarder.leaveAll(ctx, m.port, legs)
	if len(legs) == 0 && unanswered.Load() {
		err = fmt.Errorf("%w to a request under way, which may be granted yet", backends.ErrNoReply)
	}
	m.forwarder.disturbed(m.port, legs)
	if err != nil {
		return fmt.Errorf("forward: mapping left to its lifetime: %w", err)
	}
	return nil
}

// hurry ends what is under way, when it has had its time, and notes whether that
// may be granted yet. The function that it returns calls it off.
func (m *Mapping) hurry(ctx context.Context, stop context.CancelCauseFunc, unanswered *atomic.Bool) (off func()) {
	end := func() { stop(fmt.Errorf("forward: %w: closed", ErrNoMapping)) }
	longest := answerTime
	if at, has := ctx.Deadline(); has {
		longest = max(longest, time.Until(at)/2)
	}
	last := time.AfterFunc(longest, func() {
		unanswered.Store(m.grants.under.Load() > 0)
		end()
	})
	first := time.AfterFunc(answerTime, func() {
		if m.grants.under.Load() == 0 {
			end()
		}
	})
	return func() { first.Stop(); last.Stop() }
}

// abandon closes the mapping and leaves it on the gateway for its lifetime.
func (m *Mapping) abandon() {
	m.mu.Lock()
	m.closed, m.left = true, true
	m.next = time.Time{}
	m.notify()
	m.mu.Unlock()
	if _, ok := m.turn.try(); ok {
		m.give()
	} // else whoever has the turn gives the legs up after it
}

// give ends a turn. The legs of an abandoned mapping are given up after it, so
// that either it or abandon sees what the other did.
func (m *Mapping) give() {
	m.mu.Lock()
	m.stop = nil // and with it the contexts behind it
	m.mu.Unlock()
	m.turn.give()
	m.mu.Lock()
	var legs []leg
	if m.left {
		legs, m.legs = m.legs, nil
	}
	m.mu.Unlock()
	for _, l := range legs {
		l.lease.drop()
	}
	if !m.once() {
		m.forwarder.debts.owe(m.port, legs)
	}
}

// String is for logs: protocol, internal port and external endpoint.
func (m *Mapping) String() string {
	m.mu.Lock()
	ps, internal := m.wish.protocols, m.wish.internal.Port()
	m.mu.Unlock()
	name := ps[0].String()
	if len(ps) > 1 {
		name = "tcp+udp"
	}
	if external := m.External(); external.IsValid() || external.Port() != 0 {
		return fmt.Sprintf("%s %v → %d", name, external, internal)
	}
	return fmt.Sprintf("%s (not mapped) → %d", name, internal)
}

// LogValue is String.
func (m *Mapping) LogValue() slog.Value { return slog.StringValue(m.String()) }
