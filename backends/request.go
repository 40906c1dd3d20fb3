package backends

import (
	"fmt"
	"math"
	"net/netip"
	"time"
)

// Forever is the lifetime of a mapping without an end.
const Forever time.Duration = math.MaxInt64

// Request asks a gateway for a mapping.
type Request struct {
	// Protocol is what to forward. Required.
	Protocol Protocol
	// Internal is where to forward it. The port is required; the zero address
	// is this host, as the gateway sees it.
	Internal netip.AddrPort
	// External is a wish. With the zero address or port the gateway chooses.
	External netip.AddrPort
	// Exact makes another external port than the wish fail with ErrConflict.
	Exact bool
	// Remote admits only this peer. The zero value admits anyone; with port 0,
	// any port of the address.
	Remote netip.AddrPort
	// Lifetime is a wish, rounded up to whole seconds. Zero is the backend's
	// default; Forever is permanent, where the protocol can.
	Lifetime time.Duration
	// Description is what the gateway shows in its table, where the protocol
	// carries one. Backends shorten and escape it as the wire needs.
	Description string
}

// Check returns nil, or an error that wraps [ErrInvalid] and says what is
// wrong with the request. It does no I/O.
func (r Request) Check() error {
	switch {
	case r.Protocol == 0:
		return fmt.Errorf("%w: no protocol", ErrInvalid)
	case r.Internal.Port() == 0:
		return fmt.Errorf("%w: internal port 0", ErrInvalid)
	case r.Exact && r.External.Port() == 0:
		return fmt.Errorf("%w: exact needs an external port", ErrInvalid)
	case r.Lifetime < 0:
		return fmt.Errorf("%w: negative lifetime %v", ErrInvalid, r.Lifetime)
	case r.Remote.Port() != 0 && !r.Remote.Addr().IsValid():
		return fmt.Errorf("%w: remote port %d without a remote address", ErrInvalid, r.Remote.Port())
	}
	return nil
}
