package backends

import (
	"fmt"
	"strconv"
	"strings"
)

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
