package natpmp

import (
	"encoding/binary"
	"io"
	"time"
)

// The least and the usual size of an error without a payload. The standard
// answers an unknown version with eight bytes, and an unknown opcode with the
// request itself, which can be shorter.
const (
	errorResponseMin  = 4
	errorResponseSize = 8
)

// ErrorResponse answers a request that the gateway could not read: its
// version or its opcode is unknown to it (RFC 6886, section 3.5).
type ErrorResponse struct {
	// Version is the version that the gateway speaks.
	Version uint8
	// Opcode is as it came. The standard's answer to an unknown version has
	// opcode 0, without the response bit; common gateways set the bit.
	Opcode Opcode
	Result ResultCode
	// Epoch is zero unless Result is UnsupportedVersion: in other errors of
	// this form gateways put other things in its place.
	Epoch time.Duration
}

// AppendBinary appends the eight-byte form of the message to b. It never fails.
func (r ErrorResponse) AppendBinary(b []byte) ([]byte, error) {
	b = append(b, r.Version, byte(r.Opcode))
	b = binary.BigEndian.AppendUint16(b, uint16(r.Result))
	return binary.BigEndian.AppendUint32(b, epochSeconds(r.Epoch)), nil
}

// MarshalBinary returns the message. It never fails.
func (r ErrorResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseErrorResponse reads any error response of version 0, however short,
// and the answers of gateways that speak another version, of which it reads
// the version and, where there is one, the result. It returns
// io.ErrUnexpectedEOF where b is too short for that.
func ParseErrorResponse(b []byte) (ErrorResponse, error) {
	if len(b) < 2 || (b[0] == Version && len(b) < errorResponseMin) {
		return ErrorResponse{}, io.ErrUnexpectedEOF
	}
	r := ErrorResponse{Version: b[0], Opcode: Opcode(b[1])}
	if len(b) >= errorResponseMin {
		r.Result = ResultCode(binary.BigEndian.Uint16(b[2:]))
	}
	if r.Version == Version && r.Result == UnsupportedVersion && len(b) >= errorResponseSize {
		r.Epoch = duration(b[4:])
	}
	return r, nil
}
