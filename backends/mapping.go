package backends

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Mapping is what a gateway granted: a value that nobody changes.
type Mapping struct {
	// Backend is the name of the backend that made it, as its String says.
	Backend string
	// Gateway is who granted it: the address and port that the requests went to.
	Gateway netip.AddrPort
	// Protocol and Internal are what was asked, with the local address filled in.
	Protocol Protocol
	Internal netip.AddrPort
	// External is the port granted, on the gateway's external address. The
	// address is the zero Addr where the gateway would not tell it.
	External netip.AddrPort
	// Remote is the only peer admitted, or the zero value.
	Remote netip.AddrPort
	// Description is what the gateway was told, or what its table shows.
	Description string
	// Lifetime is what was granted, counted from Granted. Forever is permanent;
	// it is never 0.
	Lifetime time.Duration
	// Granted is when the answered request was sent, with a monotonic reading.
	Granted time.Time
	// Token is what the backend needs to renew and delete the mapping, also
	// after a restart of the program. The zero Token if it needs none.
	Token Token
}

// String is for people: what is forwarded to where, by which backend, for how long. It has
// no description, which can be any text, and no token.
func (m Mapping) String() string {
	if m.Protocol == 0 {
		return "no mapping"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v %v → %v", m.Protocol, Endpoint{m.External}, Endpoint{m.Internal})
	switch {
	case m.Remote.Port() != 0:
		fmt.Fprintf(&b, ", only from %v", m.Remote)
	case m.Remote.Addr().IsValid():
		fmt.Fprintf(&b, ", only from %v", m.Remote.Addr())
	}
	if m.Backend != "" {
		fmt.Fprintf(&b, ", %s", m.Backend)
	}
	if m.Lifetime == Forever {
		b.WriteString(", without an end")
	} else {
		fmt.Fprintf(&b, ", %v", m.Lifetime)
	}
	return b.String()
}

// Expires returns the time until which the mapping was granted, or the zero
// Time where it is permanent.
func (m Mapping) Expires() time.Time {
	if m.Lifetime == Forever {
		return time.Time{}
	}
	return m.Granted.Add(m.Lifetime)
}

// Check returns nil, or an error that wraps [ErrInvalid] where the mapping
// names everything rather than something. It does no I/O.
func (m Mapping) Check() error {
	if m.Protocol == 0 || m.Internal.Port() == 0 {
		return fmt.Errorf("%w: a mapping has a protocol and an internal port, this one has protocol %d and port %d",
			ErrInvalid, m.Protocol, m.Internal.Port())
	}
	return nil
}
