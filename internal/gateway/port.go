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
		ours     *ConflictError
	)
	isMismatch := errors.As(err, &mismatch)
	refusedLow := errors.Is(err, backends.ErrNotAuthorized) && port < 1024
	switch {
	case s.Exact || errors.As(err, &ours) || attempt >= maxPorts || isMismatch && attempt >= maxUnitPorts:
		return 0, false
	case isMismatch && attempt == 0:
		return mismatch.offered, true
	case errors.Is(err, backends.ErrConflict) || refusedLow:
		return RandomPort(), true
	}
	return 0, false
}

// checkPorts says whether the numbers that must be one are.
func (s *Spec) checkPorts(granted []*backends.Mapping) error {
	first := granted[0].External.Port()
	for _, g := range granted {
		switch offered := g.External.Port(); {
		case !s.SamePort && g.Internal.Port() != s.Internal.Port():
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
