package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/natforward/goforward/backends"
)

// The range of dynamic ports (RFC 6335, section 6).
const (
	firstDynamicPort = 49152
	lastDynamicPort  = 65535
)

// RandomPort returns a random port from 49152 to 65535.
func RandomPort() uint16 {
	return uint16(firstDynamicPort + rand.IntN(lastDynamicPort-firstDynamicPort+1)) //nolint:gosec // within range, and a port is not a secret
}

// portsVary reports whether an entry of the spec can have an internal port that differs from
// its group's.
func (s *Spec) portsVary() bool { return s.SamePort || s.Count > 1 }

// randomPort returns a random external port that is low enough for the whole range.
func (s *Spec) randomPort() uint16 { return min(RandomPort(), lastDynamicPort-s.ports()+1) }

// firstPort returns the external port of the first attempt. The argument preferred is the
// port that the handle had before, or 0.
func (s *Spec) firstPort(preferred uint16) uint16 {
	if s.Exact {
		preferred = 0
	}
	return cmp.Or(preferred, s.External, s.Internal.Port())
}

// nextPort returns the external port of the next attempt, or false if there is none.
func (s *Spec) nextPort(port uint16, attempt int, err error) (uint16, bool) {
	const (
		maxPorts     = 8 // random ports, after the port of the spec
		maxUnitPorts = 3 // the same for a unit that needs one number for several ports
	)
	var (
		mismatch *portMismatchError
		conflict *ConflictError
	)
	isMismatch := errors.As(err, &mismatch)
	refusedLow := errors.Is(err, backends.ErrNotAuthorized) && port < 1024
	switch {
	case s.Exact || errors.As(err, &conflict) || attempt >= maxPorts || isMismatch && attempt >= maxUnitPorts:
		return 0, false
	case isMismatch && attempt == 0 && mismatch.granted <= lastDynamicPort-s.ports()+1:
		return mismatch.granted, true
	case errors.Is(err, backends.ErrConflict) || refusedLow:
		return s.randomPort(), true
	}
	return 0, false
}

// checkPorts returns an error if the granted mappings do not satisfy the spec. The argument
// granted has the mappings of the first members. Their external ports must be the same number
// for all protocols of a port, and must follow each other like the internal ports of a range.
func (s *Spec) checkPorts(granted []*backends.Mapping) error {
	first := granted[0].External.Port()
	if first > lastDynamicPort-s.ports()+1 { // the range would end above port 65535
		return &portMismatchError{required: s.firstPort(0), granted: first}
	}
	for i, m := range s.Members()[:len(granted)] {
		g := granted[i]
		switch offered := g.External.Port() - m.Offset; {
		case s.Exact && s.Address.IsValid() && g.External.Addr() != s.Address:
			return fmt.Errorf("%w: the gateway granted the external address %v, but %v is required", backends.ErrConflict, backends.Endpoint{AddrPort: g.External}, s.Address)
		case !s.SamePort && g.Internal.Port() != s.internalPort(m):
			// Gateways of VPN providers do this.
			return &UnequalPortsError{offered}
		case offered != first:
			return &portMismatchError{required: first, granted: offered}
		case s.SamePort && offered != g.Internal.Port():
			return &portMismatchError{required: g.Internal.Port(), granted: offered}
		}
	}
	return nil
}

// UnequalPortsError is returned if the gateway grants only mappings with equal ports, and the
// spec has another internal port.
type UnequalPortsError struct {
	Port uint16 // the port that the gateway granted
}

func (e *UnequalPortsError) Error() string {
	return fmt.Sprintf("%v: the gateway forwards port %d to port %d of this host only", backends.ErrUnsupported, e.Port, e.Port)
}

func (e *UnequalPortsError) Unwrap() error { return backends.ErrUnsupported }

// portMismatchError is returned if the external port of one mapping does not match the other
// mappings of the unit.
type portMismatchError struct {
	required, granted uint16
}

func (e *portMismatchError) Error() string {
	return fmt.Sprintf("%v: the gateway granted port %d, but %d is required", backends.ErrConflict, e.granted, e.required)
}

func (e *portMismatchError) Unwrap() error { return backends.ErrConflict }

// ConflictError is returned if this program already holds the endpoint with other options or
// by another backend. Other backends are not tried, because they could create a second
// mapping.
type ConflictError struct {
	Protocol backends.Protocol
	Port     uint16
	Backend  string // the backend that holds it; empty if the options differ
}

func (e *ConflictError) Error() string {
	how := "with other options"
	if e.Backend != "" {
		how = "by " + e.Backend
	}
	return fmt.Sprintf("%v: this program already holds %v port %d %s", backends.ErrConflict, e.Protocol, e.Port, how)
}

func (e *ConflictError) Unwrap() error { return backends.ErrConflict }
