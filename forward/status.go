package forward

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

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
		Internal: s.Spec.Internal, NextAttempt: s.Next, Err: s.Err, Since: s.Since, Reason: s.Reason,
	}
	switch {
	case s.Closed:
		out.State = StateClosed
	case s.Stands():
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
