package pcp

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/natforward/goforward/backends"
)

// errorResponseMin is the least that carries a result (RFC 6887, section 8.3).
const errorResponseMin = 4

// ErrorResponse is what all responses begin with, and all that can be read of
// one whose version or opcode is foreign, or that was cut short (RFC 6887,
// sections 8.3 and 9).
type ErrorResponse struct {
	// Version is the version that the server speaks: 0 is NAT-PMP.
	Version uint8
	// Opcode is as it came. NAT-PMP's answer to an unknown version may have
	// opcode 0, without the response bit (RFC 6886, section 3.5).
	Opcode Opcode
	Result ResultCode
	// Lifetime is how long the server expects the error to last, and Epoch the
	// time since its table was last empty. Both are zero where the response is of
	// version 0, or too short to have a header: the bytes are something else then.
	Lifetime time.Duration
	Epoch    time.Duration
}

// AppendBinary appends the message to b, as a header without a payload. It
// never fails. [AppendErrorResponse] is what the standard wants of servers.
func (r ErrorResponse) AppendBinary(b []byte) ([]byte, error) {
	return appendResponseHeader(b, r.Version, r.Opcode, r.Result, r.Lifetime, r.Epoch), nil
}

// MarshalBinary returns the message. It never fails.
func (r ErrorResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseErrorResponse reads the start of any response of version 2, a success
// too, and the answers UnsupportedVersion of servers that speak another
// version, whatever their length. It returns io.ErrUnexpectedEOF where b is too
// short to have a result. Clients ignore other responses of fewer than 24
// bytes (RFC 6887, section 8.3), but such a one tells that PCP is spoken here.
func ParseErrorResponse(b []byte) (ErrorResponse, error) {
	if len(b) < errorResponseMin {
		return ErrorResponse{}, io.ErrUnexpectedEOF
	}
	r := ErrorResponse{Version: b[0], Opcode: Opcode(b[1]), Result: ResultCode(b[3])}
	legacy := r.Version == 0
	if r.Opcode&OpResponse == 0 && (!legacy || r.Opcode != 0) {
		return ErrorResponse{}, fmt.Errorf("pcp: %w: %v where a response was expected", backends.ErrMalformed, r.Opcode)
	}
	if r.Version != Version && r.Result != UnsupportedVersion || legacy && b[2] != 0 {
		return ErrorResponse{}, fmt.Errorf("pcp: %w: a response of version %d", backends.ErrMalformed, r.Version)
	}
	if r.Result != UnsupportedVersion && len(b) >= headerSize {
		if err := checkSize(b); err != nil {
			return ErrorResponse{}, err
		}
	}
	if !legacy && len(b) >= headerSize {
		r.Lifetime, r.Epoch = duration(b[4:]), epochDuration(b[8:])
	}
	return r, nil
}

// AppendErrorResponse appends to b a server's refusal of a request: the
// request itself, options and all, under the header of a response, as much of
// it as fits (RFC 6887, section 8.2). The request may be of any version and
// opcode. Where the code says that the server could not read the request or
// does not believe it, the end of the client's address stays in the header
// (RFC 6887, section 7.2). The request is not to overlap what is appended.
//
// It fails with io.ErrUnexpectedEOF for a request of fewer than two bytes, and
// with ErrInvalid for the code Success or a request that is a response.
func AppendErrorResponse(b, request []byte, code ResultCode, lifetime, epoch time.Duration) ([]byte, error) {
	if len(request) < 2 {
		return b, io.ErrUnexpectedEOF
	}
	op := Opcode(request[1])
	if op&OpResponse != 0 || code == Success {
		return b, fmt.Errorf("pcp: %w: %v as an answer to %v", backends.ErrInvalid, code, op)
	}
	const tail = 12 // where the last 96 bits of the client's address are, and stay
	b = append(b, Version, byte(op|OpResponse), 0, byte(code))
	b = binary.BigEndian.AppendUint32(b, seconds(lifetime))
	b = binary.BigEndian.AppendUint32(b, epochSeconds(epoch))
	size := min(max(len(request), headerSize), MaxMessage)
	var rest []byte
	if len(request) > tail {
		rest = request[tail:min(len(request), size)]
	}
	start := len(b)
	b = append(b, rest...)
	for n := tail + len(rest); n < size || n%4 != 0; n++ {
		b = append(b, 0)
	}
	if !code.unread() {
		clear(b[start : start+headerSize-tail])
	}
	return b, nil
}

// unread reports whether a server answers the code to a request that it did
// not read to its end.
func (c ResultCode) unread() bool {
	switch c {
	case UnsupportedVersion, UnsupportedOpcode, MalformedRequest, AddressMismatch:
		return true
	}
	return false
}
