package backends

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Forever is the lifetime of a permanent mapping.
const Forever time.Duration = math.MaxInt64

// Request describes a mapping to request from a gateway.
type Request struct {
	// Protocol is the protocol to forward. Required.
	Protocol Protocol
	// Internal is the endpoint to which the gateway forwards. The port is required.
	// The zero Addr means the address of this host that the gateway sees.
	Internal netip.AddrPort
	// External is the requested external endpoint. If the address or the port is
	// zero, the gateway chooses it.
	External netip.AddrPort
	// Exact makes the request fail with ErrConflict if the gateway grants another
	// external port.
	Exact bool
	// Remote is the only remote peer to permit. The zero value permits any peer,
	// and port 0 permits any port of the address.
	Remote netip.AddrPort
	// Lifetime is the requested lifetime, rounded up to whole seconds. Zero means
	// the default of the backend. Forever means permanent, if the protocol supports
	// that.
	Lifetime time.Duration
	// Description is the text that the gateway shows in its table, if the protocol
	// has descriptions. Backends shorten and escape it as the protocol requires.
	Description string
}

// Check returns an error that wraps [ErrInvalid] and has the reason if the request
// is not valid. It does no I/O.
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

// Protocol is an IANA protocol number, as in the IP header. The zero value is not a
// protocol and is rejected if a protocol is required.
type Protocol uint8

// The protocols that have a name in this package. Any other number is also valid if
// the gateway can map it, as PCP gateways can.
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

// String returns the protocol's lower-case name, or its number if it has no name.
func (p Protocol) String() string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// ParseProtocol parses a name that [Protocol.String] returns, in upper or lower
// case, or a number from 1 to 255. Its error wraps [ErrInvalid].
func ParseProtocol(s string) (Protocol, error) {
	for p, name := range protocolNames {
		if strings.EqualFold(s, name) {
			return p, nil
		}
	}
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && n != 0 {
		return Protocol(n), nil
	}
	return 0, fmt.Errorf("%w: unknown protocol %q: want tcp, udp, dccp, sctp, udplite or a number from 1 to 255", ErrInvalid, s)
}

// MarshalText returns the text of [Protocol.String].
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText parses the text that [ParseProtocol] accepts.
func (p *Protocol) UnmarshalText(text []byte) error {
	q, err := ParseProtocol(string(text))
	if err != nil {
		return err
	}
	*p = q
	return nil
}
