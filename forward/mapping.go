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

// Mapping is a forwarded port, or a range of ports, that a Forwarder keeps alive. It is a
// live handle: what it reports changes as the gateway replies. For several values of one
// moment call Status. Its methods may be called by several goroutines at once.
type Mapping struct {
	forwarder *Forwarder
	handle    *gateway.Handle
	noDefault bool // not what Disable and Refresh take without selectors
	onChange  func(Event)
	family    family
	closing   once
}

func (m *Mapping) status() *gateway.Status { return m.handle.Status() }

// External returns the address and port that the internet reaches, or the zero Endpoint
// before the first grant and while the mapping is lost. The address is the zero Addr if
// the gateway hides it. For a range it has the first port.
func (m *Mapping) External() backends.Endpoint { return m.Status().External }

// Internal returns where the connections arrive. Before the first grant the address may
// be the zero Addr. For a range it has the first port.
func (m *Mapping) Internal() netip.AddrPort { return m.Status().Internal }

// Backend returns the name of the backend that granted the mapping, or "".
func (m *Mapping) Backend() string { return m.Status().Backend }

// Gateway returns the gateway that granted the mapping, or the zero value.
func (m *Mapping) Gateway() netip.AddrPort { return m.Status().Gateway }

// Scope returns how far the external address reaches.
func (m *Mapping) Scope() backends.Scope { return backends.ScopeOf(m.External().Addr()) }

// Expires returns the time until which the mapping was granted, or the zero Time if it
// has no end or is not granted. It is renewed long before.
func (m *Mapping) Expires() time.Time { return m.Status().Expires }

// Grants returns what the gateway granted: one mapping for each protocol and port, and
// none before the first grant and while the mapping is lost.
func (m *Mapping) Grants() []backends.Mapping { return m.Status().Grants }

// Err returns why the last request failed, or nil if it did not. A mapping whose renewal
// failed stands until it expires.
func (m *Mapping) Err() error { return m.status().Err }

// Changed returns a channel that is closed at the next change of Status, and when the
// mapping is closed. Call it before you read, so that no change is missed.
func (m *Mapping) Changed() <-chan struct{} { return m.handle.Changed() }

// Done returns a channel that is closed when the mapping is closed: by Close, by Disable,
// or with its Listener or Forwarder.
func (m *Mapping) Done() <-chan struct{} { return m.handle.Done() }

// Wait returns nil as soon as the mapping is granted, ErrClosed when it is closed, or the
// cause of the context's end.
func (m *Mapping) Wait(ctx context.Context) error { return waitForOne(ctx, m) }

// waitForOne waits until one of the mappings is granted, or all are closed. There are two
// at most: the IPv4 mapping and the pinhole of a socket.
func waitForOne(ctx context.Context, ms ...*Mapping) error {
	for {
		var changed [2]<-chan struct{} // nil for those that are closed
		isOpen := false
		for i, m := range ms {
			next := m.Changed()
			switch s := m.status(); {
			case s.IsActive():
				return nil
			case !s.Closed:
				changed[i], isOpen = next, true
			}
		}
		if !isOpen {
			return errClosed("mapping")
		}
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// subject is the mapping as selectors see it.
func (m *Mapping) subject() *subject {
	s := m.status()
	return &subject{spec: s.Spec, granted: s.Grants()}
}

// ranOut reports whether the mapping was left for its lifetime, and that is over.
func (m *Mapping) isExpiredOnce() bool {
	s := m.status()
	return s.Spec.Once && !s.Since.IsZero() && !s.IsActive() // without an event it was not granted yet
}

// String is for logs: the protocol, the external endpoint and the internal port, or the
// ports of a range.
func (m *Mapping) String() string {
	s := m.status().Spec
	name := s.Protocols[0].String()
	if len(s.Protocols) > 1 {
		name = "tcp+udp"
	}
	external := m.External()
	if s.Count > 1 {
		first, last := s.Internal.Port(), s.Internal.Port()+s.Count-1
		if external.IsZero() {
			return fmt.Sprintf("%s %v → %d-%d", name, external, first, last)
		}
		return fmt.Sprintf("%s %v-%d → %d-%d", name, external, external.Port()+s.Count-1, first, last)
	}
	return fmt.Sprintf("%s %v → %d", name, external, s.Internal.Port())
}

// LogValue is String.
func (m *Mapping) LogValue() slog.Value { return slog.StringValue(m.String()) }

// Refresh requests the mapping again now, in place, even after it expired. Options change
// the mapping. A new lifetime, interval or description takes effect in place. For another
// port, peer or internal address the mapping is deleted first, and requested again as it
// was if the new one is refused. Another protocol or number of ports fails with
// backends.ErrInvalid, as the options that are for Enable only do: Background, IPv6,
// NoDefault, OnChange and Once. After Close it fails with ErrClosed.
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
	f.callHook(ctx)
	if len(opts) == 0 {
		return f.callGateway(ctx, m, func(c *gateway.Client) error { return c.Refresh(ctx, m.handle) })
	}
	before := m.status().Spec
	changed := spec{Spec: *before, ipv6: m.family == ipv6, noDefault: m.noDefault}
	if err := changed.add(opts); err != nil {
		return err
	}
	switch {
	case !slices.Equal(changed.Protocols, before.Protocols), changed.Count != before.Count:
		return invalid("a mapping cannot change its protocol or number of ports: enable another")
	case changed.Background != before.Background || changed.Once != before.Once ||
		changed.noDefault != m.noDefault || changed.onChange != nil || changed.ipv6 != (m.family == ipv6):
		return invalid("Background, IPv6, NoDefault, OnChange and Once are for Enable")
	}
	return f.callGateway(ctx, m, func(c *gateway.Client) error { return c.Change(ctx, m.handle, &changed.Spec) })
}

// State is what a mapping is at a moment.
type State uint8

// The states of a mapping.
const (
	// StatePending: it was not granted yet. It is requested again if Background was given.
	StatePending State = iota
	// StateActive: the gateway forwards it.
	StateActive
	// StateLost: it was granted, and the gateway does not have it any more, as far as is
	// known. It is requested again, unless Once was given.
	StateLost
	// StateClosed: it was closed, and never changes again.
	StateClosed
)

// String returns the name of the state in lower case.
func (s State) String() string {
	switch s {
	case StatePending:
		return "pending"
	case StateActive:
		return "active"
	case StateLost:
		return "lost"
	case StateClosed:
		return "closed"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText returns the name of the state.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Status is all that is known of a mapping at one moment. The short methods of Mapping
// return parts of it.
type Status struct {
	State State
	// Grants are what the gateway granted: one mapping for each protocol and port, in the
	// order of the ports, and TCP before UDP. None if State is not StateActive.
	Grants []backends.Mapping
	// External is the address and port that the internet reaches: that of the first of
	// Grants, or the zero Endpoint. The address is the zero Addr if the gateway hides it.
	External backends.Endpoint
	// Internal is where the connections arrive: that of the first of Grants, or what is
	// requested. Then its address may be the zero Addr, which is this host.
	Internal netip.AddrPort
	// Backend and Gateway are those that granted the mapping, or zero.
	Backend string
	Gateway netip.AddrPort
	// Expires is the earliest end of Grants, or the zero Time: it has no end, or nothing
	// is granted.
	Expires time.Time
	// NextAttempt is the time of the next request, or the zero Time: none is planned.
	NextAttempt time.Time
	// Err is why the last request failed, or nil if it did not.
	Err error
	// Since and Reason are the time and the reason of the last event but EventFailed:
	// since then State, Grants and External are what they are. The zero Time before the
	// first grant.
	Since  time.Time
	Reason string
}

// Status returns a consistent snapshot.
func (m *Mapping) Status() Status {
	s := m.status()
	out := Status{
		Internal: s.Spec.Internal, NextAttempt: s.NextRequest, Err: s.Err, Since: s.Since, Reason: s.Reason,
	}
	switch {
	case s.Closed:
		out.State = StateClosed
	case s.IsActive():
		out.State, out.Grants, out.Expires = StateActive, s.Grants(), s.Expires()
		first := out.Grants[0]
		out.External, out.Backend, out.Gateway = backends.Endpoint{AddrPort: first.External}, first.Backend, first.Gateway
		if first.Internal.IsValid() {
			out.Internal = first.Internal
		}
	case !s.Since.IsZero():
		out.State = StateLost
	}
	return out
}
