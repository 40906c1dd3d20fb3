package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/natforward/goforward/backends"
)

// The dynamic ports (RFC 6335, section 6).
const (
	firstDynamicPort = 49152
	lastDynamicPort  = 65535
)

// RandomPort returns a random port from 49152 to 65535.
func RandomPort() uint16 {
	return uint16(firstDynamicPort + rand.IntN(lastDynamicPort-firstDynamicPort+1)) //nolint:gosec // in range; a port is no secret
}

// isScattered reports whether an entry of the spec can have another internal port than its
// group.
func (s *Spec) portsVary() bool { return s.SamePort || s.Count > 1 }

// randomPort returns a random external port that leaves room for those after it.
func (s *Spec) randomPort() uint16 { return min(RandomPort(), lastDynamicPort-s.ports()+1) }

// firstPort is the external port to try first. Preferred is what the handle had before, or 0.
func (s *Spec) firstPort(preferred uint16) uint16 {
	if s.Exact {
		preferred = 0
	}
	return cmp.Or(preferred, s.External, s.Internal.Port())
}

// nextPort returns the external port to try after one that failed, or false.
func (s *Spec) nextPort(port uint16, attempt int, err error) (uint16, bool) {
	const (
		maxPorts     = 8 // random ones, after that of the spec
		maxUnitPorts = 3 // if several numbers must be one
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
	case isMismatch && attempt == 0 && mismatch.offered <= lastDynamicPort-s.ports()+1:
		return mismatch.offered, true
	case errors.Is(err, backends.ErrConflict) || refusedLow:
		return s.randomPort(), true
	}
	return 0, false
}

// checkPorts says whether the first of what was granted, in the order of Members, fits
// together: the external ports are one number, or follow each other as the internal ones do.
func (s *Spec) checkPorts(granted []*backends.Mapping) error {
	first := granted[0].External.Port()
	if first > lastDynamicPort-s.ports()+1 { // there is no room for the range
		return &portMismatchError{wanted: s.firstPort(0), offered: first}
	}
	for i, m := range s.Members()[:len(granted)] {
		g := granted[i]
		switch offered := g.External.Port() - m.Offset; {
		case s.Exact && s.Address.IsValid() && g.External.Addr() != s.Address:
			return fmt.Errorf("%w: the gateway gives the external address %v where %v is needed", backends.ErrConflict, backends.Endpoint{AddrPort: g.External}, s.Address)
		case !s.SamePort && g.Internal.Port() != s.internalPort(m):
			// The gateways of VPN providers do so.
			return fmt.Errorf("%w: the gateway forwards port %d to port %d of this host only: ask for SamePort", backends.ErrUnsupported, offered, offered)
		case offered != first:
			return &portMismatchError{wanted: first, offered: offered}
		case s.SamePort && offered != g.Internal.Port():
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
