package backends

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Mapping is a mapping that a gateway granted. Treat it as read-only.
type Mapping struct {
	// Backend is the name of the backend that created the mapping, as its String
	// method returns it.
	Backend string
	// Gateway is the address and port of the gateway to which the request was sent.
	Gateway netip.AddrPort
	// Protocol and Internal are the requested protocol and internal endpoint.
	// Internal always has an address.
	Protocol Protocol
	Internal netip.AddrPort
	// External is the granted external endpoint. Its address is the zero Addr if
	// the gateway does not report it.
	External netip.AddrPort
	// Remote is the only remote peer that is permitted, or the zero value.
	Remote netip.AddrPort
	// Description is the description that was sent to the gateway, or the one in
	// its table.
	Description string
	// Lifetime is the granted lifetime, which starts at Granted. Forever means
	// permanent. Lifetime is never 0.
	Lifetime time.Duration
	// Granted is the time at which the granted request was sent, with a monotonic
	// reading.
	Granted time.Time
	// Token has the secret data with which the backend renews and deletes the
	// mapping, also after a restart of the program. It is the zero Token if the
	// backend needs none.
	Token Token
}

// String returns the protocol, the endpoints, the backend and the lifetime in a
// form for people. It does not include the description, which can be any text, or
// the token.
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
		b.WriteString(", permanent")
	} else {
		fmt.Fprintf(&b, ", %v", m.Lifetime)
	}
	return b.String()
}

// Expires returns the time at which the mapping expires, or the zero Time if it is
// permanent.
func (m Mapping) Expires() time.Time {
	if m.Lifetime == Forever {
		return time.Time{}
	}
	return m.Granted.Add(m.Lifetime)
}

// Check returns an error that wraps [ErrInvalid] if the mapping has no protocol or
// no internal port, which some protocols treat as "all". It does no I/O.
func (m Mapping) Check() error {
	if m.Protocol == 0 || m.Internal.Port() == 0 {
		return fmt.Errorf("%w: a mapping needs a protocol and an internal port, not protocol %d and port %d",
			ErrInvalid, m.Protocol, m.Internal.Port())
	}
	return nil
}
