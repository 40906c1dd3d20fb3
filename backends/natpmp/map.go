package natpmp

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/natforward/goforward/backends"
)

// The sizes of the messages about mappings (RFC 6886, section 3.3).
const (
	mapRequestSize  = 12
	mapResponseSize = 16
)

// MapRequest asks for a mapping, for more of its lifetime, or for its end
// (RFC 6886, sections 3.3 and 3.4).
type MapRequest struct {
	// Protocol is backends.TCP or backends.UDP.
	Protocol backends.Protocol
	// InternalPort is the port on the host that asks. With Lifetime 0, the
	// value 0 means all of the host's mappings of the protocol.
	InternalPort uint16
	// ExternalPort is a wish; with 0 the gateway chooses. To be 0 where Lifetime is.
	ExternalPort uint16
	// Lifetime is a wish, sent in whole seconds, rounded up, at most 2³²−1. Zero
	// deletes.
	Lifetime time.Duration
}

// AppendBinary appends the message to b. It fails with ErrUnsupported for a
// protocol that NAT-PMP does not have.
func (r MapRequest) AppendBinary(b []byte) ([]byte, error) {
	op, err := mapOpcode(r.Protocol)
	if err != nil {
		return b, err
	}
	b = append(b, Version, byte(op), 0, 0)
	b = binary.BigEndian.AppendUint16(b, r.InternalPort)
	b = binary.BigEndian.AppendUint16(b, r.ExternalPort)
	return binary.BigEndian.AppendUint32(b, seconds(r.Lifetime)), nil
}

// MarshalBinary returns what AppendBinary appends.
func (r MapRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseMapRequest reads the message; more bytes than it has are ignored.
func ParseMapRequest(b []byte) (MapRequest, error) {
	p, err := parseMapHeader(b, mapRequestSize, 0)
	if err != nil {
		return MapRequest{}, err
	}
	return MapRequest{
		Protocol:     p,
		InternalPort: binary.BigEndian.Uint16(b[4:]),
		ExternalPort: binary.BigEndian.Uint16(b[6:]),
		Lifetime:     duration(b[8:]),
	}, nil
}

// MapResponse answers a MapRequest (RFC 6886, section 3.3).
type MapResponse struct {
	// Protocol is backends.TCP or backends.UDP.
	Protocol backends.Protocol
	Result   ResultCode
	// Epoch is the time since the gateway's table was last empty.
	Epoch        time.Duration
	InternalPort uint16
	// ExternalPort and Lifetime are what was granted. Ignore them unless Result
	// is Success: some gateways echo the wish in errors.
	ExternalPort uint16
	Lifetime     time.Duration
}

// AppendBinary appends the message to b. It fails with ErrUnsupported for a
// protocol that NAT-PMP does not have.
func (r MapResponse) AppendBinary(b []byte) ([]byte, error) {
	op, err := mapOpcode(r.Protocol)
	if err != nil {
		return b, err
	}
	b = appendResponseHeader(b, op, r.Result, r.Epoch)
	b = binary.BigEndian.AppendUint16(b, r.InternalPort)
	b = binary.BigEndian.AppendUint16(b, r.ExternalPort)
	return binary.BigEndian.AppendUint32(b, seconds(r.Lifetime)), nil
}

// MarshalBinary returns what AppendBinary appends.
func (r MapResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseMapResponse reads the message; more bytes than it has are ignored. A
// shorter error response is [ParseErrorResponse]'s.
func ParseMapResponse(b []byte) (MapResponse, error) {
	p, err := parseMapHeader(b, mapResponseSize, OpResponse)
	if err != nil {
		return MapResponse{}, err
	}
	return MapResponse{
		Protocol:     p,
		Result:       ResultCode(binary.BigEndian.Uint16(b[2:])),
		Epoch:        duration(b[4:]),
		InternalPort: binary.BigEndian.Uint16(b[8:]),
		ExternalPort: binary.BigEndian.Uint16(b[10:]),
		Lifetime:     duration(b[12:]),
	}, nil
}

// parseMapHeader is checkHeader for either of the map opcodes.
func parseMapHeader(b []byte, size int, response Opcode) (backends.Protocol, error) {
	if len(b) < size {
		return 0, io.ErrUnexpectedEOF
	}
	if b[0] != Version {
		return 0, &VersionError{Version: b[0]}
	}
	op := Opcode(b[1])
	p, ok := op.protocol()
	if !ok || op&OpResponse != response {
		return 0, fmt.Errorf("natpmp: %w: %v where a mapping was expected", backends.ErrMalformed, op)
	}
	return p, nil
}
