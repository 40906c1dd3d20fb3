package backends

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
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

// Protocol is an IANA protocol number, the one in the IP header.
// The zero value is no protocol and is refused wherever one is needed.
type Protocol uint8

// The protocols with a name here. Any other number is valid too, where the
// gateway can map it (PCP can).
const (
	TCP     Protocol = 6
	UDP     Protocol = 17
	DCCP    Protocol = 33
	SCTP    Protocol = 132
	UDPLite Protocol = 136
)

var protocolNames = map[Protocol]string{
	TCP: "tcp", UDP: "udp", DCCP: "dccp", SCTP: "sctp", UDPLite: "udplite",
}

// String returns the protocol's lower-case name, or its number.
func (p Protocol) String() string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// ParseProtocol reads a name as [Protocol.String] writes it, in any case, or a
// number from 1 to 255. Its error wraps [ErrInvalid].
func ParseProtocol(s string) (Protocol, error) {
	for p, name := range protocolNames {
		if strings.EqualFold(s, name) {
			return p, nil
		}
	}
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && n != 0 {
		return Protocol(n), nil
	}
	return 0, fmt.Errorf("%w: no protocol %q: want tcp, udp, dccp, sctp, udplite or a number from 1 to 255", ErrInvalid, s)
}

// MarshalText writes the protocol as [Protocol.String] does.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what [ParseProtocol] reads.
func (p *Protocol) UnmarshalText(text []byte) error {
	q, err := ParseProtocol(string(text))
	if err != nil {
		return err
	}
	*p = q
	return nil
}
