package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
)

// Mapping is a forwarded port that a Forwarder keeps alive: a live handle. What
// it tells changes as the gateway answers. Its methods may be called by several
// goroutines at once.
type Mapping struct {
	forwarder *Forwarder
	handle    *gateway.Handle
	aside     bool // not what Disable and Refresh take without selectors
	family    family
	closing   once
}

func (m *Mapping) status() *gateway.Status { return m.handle.Status() }

// first is the first of State, or the zero value.
func (m *Mapping) first() backends.Mapping {
	if s := m.status(); s.Stands() {
		return *s.Granted[0]
	}
	return backends.Mapping{}
}

// State returns what the gateway granted: two mappings for Both, none before the
// first grant and while the mapping is lost.
func (m *Mapping) State() []backends.Mapping {
	if s := m.status(); s.Stands() {
		return s.State()
	}
	return nil
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
	return m.status().Spec.Internal
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
	if s := m.status(); s.Stands() {
		return s.Expires()
	}
	return time.Time{}
}

// Err returns why the last attempt to get or renew it failed, or nil where it
// did not. A mapping whose renewal failed still stands until it expires.
func (m *Mapping) Err() error { return m.status().Err }

// Since returns when what State tells last became so, and why: the Reason of that
// Event. Before the first grant it is the zero Time, and Err says why.
func (m *Mapping) Since() (at time.Time, reason string) {
	s := m.status()
	return s.Since, s.Reason
}

// NextTry returns when it is asked for next, or the zero Time: never.
func (m *Mapping) NextTry() time.Time { return m.status().Next }

// Changed returns a channel that is closed at the next change of what State,
// Err or the other methods tell, and when the mapping is closed. Call it before
// you read, so that no change is missed.
func (m *Mapping) Changed() <-chan struct{} { return m.handle.Changed() }

// Wait returns nil as soon as the mapping is granted, ErrClosed when it is closed, or
// the cause of the context's end.
func (m *Mapping) Wait(ctx context.Context) error {
	for {
		changed := m.Changed()
		switch s := m.status(); {
		case s.Closed:
			return errClosed("mapping")
		case s.Stands():
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// subject is the mapping as selectors see it.
func (m *Mapping) subject() *subject {
	s := m.status()
	return &subject{spec: s.Spec, granted: s.State()}
}

// ranOut reports whether the mapping was left for its lifetime, and that is over.
func (m *Mapping) ranOut() bool {
	s := m.status()
	return s.Spec.Once && !s.Since.IsZero() && !s.Stands() // without an event it was not granted yet
}

// String is for logs: protocol, internal port and external endpoint.
func (m *Mapping) String() string {
	w := m.status().Spec
	name := w.Protocols[0].String()
	if len(w.Protocols) > 1 {
		name = "tcp+udp"
	}
	if external := m.External(); external.IsValid() || external.Port() != 0 {
		return fmt.Sprintf("%s %v → %d", name, external, w.Internal.Port())
	}
	return fmt.Sprintf("%s (not mapped) → %d", name, w.Internal.Port())
}

// LogValue is String.
func (m *Mapping) LogValue() slog.Value { return slog.StringValue(m.String()) }

// Refresh asks for the mapping again now, in place, even where it has expired.
// Options change what is asked for: a longer lifetime and another description
// in place; another port, peer or internal address by taking the old mapping
// away first, and back again where the new one is refused. Another protocol
// fails with backends.ErrInvalid. After Close it fails with ErrClosed.
func (m *Mapping) Refresh(ctx context.Context, opts ...Option) error {
	f := m.forwarder
	ctx, end, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if m.status().Closed {
		return errClosed("mapping")
	}
	if len(opts) == 0 {
		return f.ask(ctx, m, func(c *gateway.Client) error { return c.Refresh(ctx, m.handle) })
	}
	before := m.status().Spec
	altered := spec{Spec: *before, ipv6: m.family == ipv6, aside: m.aside}
	if err := altered.add(opts); err != nil {
		return err
	}
	switch {
	case !slices.Equal(altered.Protocols, before.Protocols):
		return invalid("a mapping cannot change its protocol: enable another")
	case altered.Background != before.Background || altered.Once != before.Once ||
		altered.aside != m.aside || altered.ipv6 != (m.family == ipv6):
		return invalid("Aside, Background, IPv6 and Once are for Enable")
	}
	return f.ask(ctx, m, func(c *gateway.Client) error { return c.Change(ctx, m.handle, &altered.Spec) })
}
