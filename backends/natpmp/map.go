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

// MapRequest creates, renews or deletes a mapping (RFC 6886, sections 3.3 and 3.4).
type MapRequest struct {
	// Protocol is backends.TCP or backends.UDP.
	Protocol backends.Protocol
	// InternalPort is the port on the requesting host. If Lifetime is 0, an
	// InternalPort of 0 means all mappings of the host for the protocol.
	InternalPort uint16
	// ExternalPort is the suggested port. If it is 0, the gateway chooses. It must
	// be 0 if Lifetime is 0.
	ExternalPort uint16
	// Lifetime is the requested lifetime. It is sent in whole seconds, rounded up,
	// at most 2³²−1. Zero deletes the mapping.
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

// MarshalBinary returns the message. It fails in the same cases as AppendBinary.
func (r MapRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseMapRequest parses the message. It ignores additional bytes.
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
	// Epoch is the time since the gateway's mapping table was last empty.
	Epoch        time.Duration
	InternalPort uint16
	// ExternalPort and Lifetime are the granted values. Ignore them unless Result
	// is Success: some gateways copy the requested values into error responses.
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

// MarshalBinary returns the message. It fails in the same cases as AppendBinary.
func (r MapResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseMapResponse parses the message. It ignores additional bytes. For a shorter
// error response use [ParseErrorResponse].
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

// parseMapHeader is checkHeader for both map opcodes. It returns the protocol.
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
		return 0, fmt.Errorf("natpmp: %w: %v instead of a map message", backends.ErrMalformed, op)
	}
	return p, nil
}
