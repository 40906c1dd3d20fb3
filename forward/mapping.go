package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/gateway"
	"github.com/natforward/goforward/reach"
)

// Mapping is a forwarded port, or a range of ports, that a Forwarder keeps alive. It is a
// live handle: the results of its methods change when the gateway replies. To read several
// values that belong together, call Status. The methods may be called by several goroutines
// at once.
type Mapping struct {
	forwarder *Forwarder
	handle    *gateway.Handle
	onChange  func(Event)
	noDefault bool // Disable and Refresh without selectors skip the mapping
	family    family
	closing   once
	verified  atomic.Pointer[verified] // nil if the mapping has no socket and was never verified
}

func (m *Mapping) status() *gateway.Status { return m.handle.Status() }

// External returns the address and port that the internet reaches. It returns the zero
// Endpoint before the first grant and while the mapping is lost. The address is the zero Addr
// if the gateway hides it. For a range, External returns the first port.
func (m *Mapping) External() backends.Endpoint { return m.Status().External }

// Internal returns the address and port to which the gateway forwards. Before the first
// grant, the address may be the zero Addr. For a range, Internal returns the first port.
func (m *Mapping) Internal() netip.AddrPort { return m.Status().Internal }

// Backend returns the name of the backend that granted the mapping, or "".
func (m *Mapping) Backend() string { return m.Status().Backend }

// Gateway returns the gateway that granted the mapping, or the zero value.
func (m *Mapping) Gateway() netip.AddrPort { return m.Status().Gateway }

// Scope returns the scope of the external address: whether the internet can reach it. It is
// backends.ScopeUnknown before the first grant, while the mapping is lost, and if the gateway
// hides its address.
func (m *Mapping) Scope() backends.Scope { return backends.ScopeOf(m.External().Addr()) }

// Expires returns the time at which the grant ends. It returns the zero Time if the grant has
// no end, or if there is no grant. The mapping is renewed long before.
func (m *Mapping) Expires() time.Time { return m.Status().Expires }

// Grants returns the mappings that the gateway granted: one for each protocol and port. It
// returns none before the first grant and while the mapping is lost.
func (m *Mapping) Grants() []backends.Mapping { return m.Status().Grants }

// Err returns the error of the last request, or nil if the request succeeded. A mapping whose
// renewal failed is active until it expires.
func (m *Mapping) Err() error { return m.status().Err }

// Changed returns a channel that is closed at the next change of Status, and when the mapping
// is closed. Call Changed before you read the status, so that you miss no change.
func (m *Mapping) Changed() <-chan struct{} { return m.handle.Changed() }

// Done returns a channel that is closed when the mapping is closed: by Close, by Disable, or
// together with its Listener or Forwarder.
func (m *Mapping) Done() <-chan struct{} { return m.handle.Done() }

// Wait waits until the mapping is granted and then returns nil. It returns ErrClosed if the
// mapping is closed, or the cause of the end of ctx.
func (m *Mapping) Wait(ctx context.Context) error { return waitForOne(ctx, m) }

// waitForOne waits until one of the mappings is granted, or all are closed. There are at most
// two: the IPv4 mapping and the pinhole of a socket.
func waitForOne(ctx context.Context, ms ...*Mapping) error {
	for {
		var changed [2]<-chan struct{} // nil for a closed mapping
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

// subject returns the mapping in the form that selectors examine.
func (m *Mapping) subject() *subject {
	s := m.status()
	return &subject{spec: s.Spec, granted: s.Grants()}
}

// isExpiredOnce reports whether the mapping has Once and its lifetime has ended.
func (m *Mapping) isExpiredOnce() bool {
	s := m.status()
	return s.Spec.Once && !s.Since.IsZero() && !s.IsActive() // without an event, the mapping has not been granted yet
}

// String returns a short description for logs: the protocol, the external endpoint and the
// internal port, or the ports of a range.
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

// LogValue returns the result of String.
func (m *Mapping) LogValue() slog.Value { return slog.StringValue(m.String()) }

// Refresh requests the mapping again at once, without deleting it first, even if it has
// expired. Options change the mapping. A new lifetime, interval or description takes effect
// without interruption. For another port, peer or internal address, the mapping is deleted
// first; if the gateway then refuses the new one, the previous mapping is requested again.
// Another protocol or number of ports fails with backends.ErrInvalid. So do options that only
// Enable accepts: Background, IPv6, NoDefault, OnChange and Once. After Close, Refresh fails
// with ErrClosed.
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
		return invalid("Background, IPv6, NoDefault, OnChange and Once are options of Enable, not of Refresh")
	}
	return f.callGateway(ctx, m, func(c *gateway.Client) error { return c.Change(ctx, m.handle, &changed.Spec) })
}

// State is the state of a mapping.
type State uint8

// The states of a mapping.
const (
	// StatePending means that the mapping has not been granted yet. It is requested again if
	// Background was given.
	StatePending State = iota
	// StateActive means that the gateway forwards the mapping.
	StateActive
	// StateLost means that the mapping was granted but the gateway no longer has it, as far
	// as the Forwarder can tell. The mapping is requested again, unless Once was given.
	StateLost
	// StateClosed means that the mapping is closed. This state never changes again.
	StateClosed
)

// String returns the name of the state in lower case.
func (s State) String() string {
	if s > StateClosed {
		return fmt.Sprintf("state %d", uint8(s))
	}
	return [...]string{StatePending: "pending", StateActive: "active", StateLost: "lost", StateClosed: "closed"}[s]
}

// MarshalText returns the name of the state.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Status is a snapshot of a mapping. The short methods of Mapping return parts of it.
type Status struct {
	State State
	// Grants has the mappings that the gateway granted: one for each protocol and port, in
	// the order of the ports, and TCP before UDP. It is empty if State is not StateActive.
	Grants []backends.Mapping
	// External is the address and port that the internet reaches: the external endpoint of
	// the first of Grants, or the zero Endpoint. The address is the zero Addr if the gateway
	// hides it.
	External backends.Endpoint
	// Internal is the address and port to which the gateway forwards: the internal endpoint
	// of the first of Grants. Without grants, it is the requested endpoint; its address may
	// then be the zero Addr, which means this host.
	Internal netip.AddrPort
	// Backend and Gateway are the backend and the gateway that granted the mapping, or zero
	// values.
	Backend string
	Gateway netip.AddrPort
	// Expires is the earliest end of Grants. It is the zero Time if there is no end, or if
	// there are no grants.
	Expires time.Time
	// NextAttempt is the time of the next request. It is the zero Time if none is scheduled.
	NextAttempt time.Time
	// Err is the error of the last request, or nil if the request succeeded.
	Err error
	// Since and Reason are the time and the reason of the last event that changed State, Grants
	// or External. Since is the zero Time before the first grant.
	Since  time.Time
	Reason string
	// Reach is the result of the last verification since then. It is the zero value if there was
	// none, which does not mean that the mapping is unreachable.
	Reach reach.Result
}

// Status returns a consistent snapshot of the mapping.
func (m *Mapping) Status() Status {
	s := m.status()
	out := Status{
		Internal: s.Spec.Internal, NextAttempt: s.NextRequest, Err: s.Err, Since: s.Since, Reason: s.Reason, Reach: m.lastResult(s),
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
