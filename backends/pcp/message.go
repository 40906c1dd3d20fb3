package pcp

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// Port is the UDP port on which servers listen. AnnouncePort is the UDP port on
// which hosts listen for announcements (RFC 6887, sections 8.1 and 14.1).
const (
	Port         = 5351
	AnnouncePort = 5350
)

// Version is the protocol version that this package implements (RFC 6887, section
// 7.1).
const Version = 2

// MaxMessage is the maximum size of a message in bytes. The size of every message
// is a multiple of four (RFC 6887, section 7).
const MaxMessage = 1100

// headerSize is the size of the header of requests and responses (RFC 6887,
// sections 7.1 and 7.2).
const headerSize = 24

// Opcode identifies the kind of a message (RFC 6887, section 19.2).
type Opcode uint8

// The opcodes of requests. A response has the request's opcode plus OpResponse.
const (
	OpAnnounce       Opcode = 0
	OpMap            Opcode = 1
	OpPeer           Opcode = 2
	OpAuthentication Opcode = 3 // RFC 7652
	OpResponse       Opcode = 128
)

// String returns the name of the opcode.
func (o Opcode) String() string {
	names := [...]string{OpAnnounce: "announce", OpMap: "map", OpPeer: "peer", OpAuthentication: "authentication"}
	request := o &^ OpResponse
	switch {
	case int(request) >= len(names):
		return fmt.Sprintf("opcode %d", uint8(o))
	case o != request:
		return names[request] + " response"
	}
	return names[request]
}

// Header is the beginning of every message (RFC 6887, sections 7.1 and 7.2).
type Header struct {
	Version uint8
	Opcode  Opcode
	// Result is the result code of a response. It is zero in requests, and in
	// responses that are too short to have one.
	Result ResultCode
}

// ParseHeader parses the beginning of any message of any version. It returns
// io.ErrUnexpectedEOF if b has fewer than two bytes.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < 2 {
		return Header{}, io.ErrUnexpectedEOF
	}
	h := Header{Version: b[0], Opcode: Opcode(b[1])}
	if h.Opcode&OpResponse != 0 && len(b) >= 4 {
		h.Result = ResultCode(b[3])
	}
	return h, nil
}

// checkRequest returns an error unless b is a request of this version with the
// opcode and at least size bytes. The checks have the order of RFC 6887, section
// 8.2.
func checkRequest(b []byte, size int, want Opcode) error {
	if len(b) < 2 {
		return io.ErrUnexpectedEOF
	}
	got := Opcode(b[1])
	switch {
	case got&OpResponse != 0:
		return fmt.Errorf("pcp: %w: %v instead of a request", backends.ErrMalformed, got)
	case b[0] != Version:
		return &RequestError{Code: UnsupportedVersion, Reason: fmt.Sprintf("version %d", b[0])}
	case len(b) < headerSize:
		return io.ErrUnexpectedEOF
	case len(b) > MaxMessage || len(b)%4 != 0:
		return &RequestError{Code: MalformedRequest, Reason: fmt.Sprintf("%d bytes", len(b))}
	case got != want:
		return &RequestError{Code: UnsupportedOpcode, Reason: fmt.Sprintf("%v instead of %v", got, want)}
	case len(b) < size:
		return &RequestError{Code: MalformedRequest, Reason: fmt.Sprintf("%v of %d bytes", got, len(b))}
	}
	return nil
}

// checkResponse returns an error unless b is a response of this version with the
// opcode (RFC 6887, section 8.3).
func checkResponse(b []byte, size int, want Opcode) error {
	if len(b) < 2 {
		return io.ErrUnexpectedEOF
	}
	if b[0] != Version {
		r, err := ParseErrorResponse(b)
		if err != nil {
			return err
		}
		return &VersionError{Version: r.Version, Lifetime: r.Lifetime}
	}
	if got := Opcode(b[1]); got != want|OpResponse {
		return fmt.Errorf("pcp: %w: %v instead of %v", backends.ErrMalformed, got, want|OpResponse)
	}
	if len(b) < size {
		return io.ErrUnexpectedEOF
	}
	return checkSize(b)
}

// checkSize returns an error for a size that no response can have.
func checkSize(b []byte) error {
	if len(b) > MaxMessage || len(b)%4 != 0 {
		return fmt.Errorf("pcp: %w: a response of %d bytes", backends.ErrMalformed, len(b))
	}
	return nil
}

// appendRequestHeader appends the header of a request (RFC 6887, section 7.1).
func appendRequestHeader(b []byte, op Opcode, lifetime time.Duration, client netip.Addr) []byte {
	b = append(b, Version, byte(op), 0, 0)
	b = binary.BigEndian.AppendUint32(b, seconds(lifetime))
	return appendAddr(b, client)
}

// appendResponseHeader appends the header of a response (RFC 6887, section 7.2).
func appendResponseHeader(b []byte, version uint8, op Opcode, result ResultCode, lifetime, epoch time.Duration) []byte {
	b = append(b, version, byte(op), 0, byte(result))
	b = binary.BigEndian.AppendUint32(b, seconds(lifetime))
	b = binary.BigEndian.AppendUint32(b, epochSeconds(epoch))
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

// appendAddr appends an address as 16 bytes, an IPv4 address as an IPv4-mapped IPv6
// address (RFC 6887, section 5). The zero Addr is written as ::.
func appendAddr(b []byte, addr netip.Addr) []byte {
	a16 := addr.As16()
	return append(b, a16[:]...)
}

// parseAddr parses an address. It is the inverse of appendAddr.
func parseAddr(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b[:16])).Unmap() }

// canonicalAddr returns the address that parseAddr returns after appendAddr.
func canonicalAddr(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// suggestedAddr returns the suggested external address of a request. If none is
// requested, it is the unspecified address of the family (RFC 6887, section 5).
func suggestedAddr(requested, family netip.Addr) netip.Addr {
	switch {
	case requested.IsValid():
		return requested
	case family.Unmap().Is6():
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// seconds converts a lifetime to whole seconds, rounded up and limited to the range
// of the field. The largest value means no end (RFC 6887, section 15).
func seconds(d time.Duration) uint32 {
	switch {
	case d <= 0:
		return 0
	case d == backends.Forever:
		return math.MaxUint32
	}
	s := (d-1)/time.Second + 1
	return uint32(min(s, math.MaxUint32-1)) //nolint:gosec // clamped
}

// duration parses a lifetime.
func duration(b []byte) time.Duration {
	s := binary.BigEndian.Uint32(b)
	if s == math.MaxUint32 {
		return backends.Forever
	}
	return time.Duration(s) * time.Second
}

// epochSeconds rounds down, because a server counts only full seconds.
func epochSeconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), math.MaxUint32)) //nolint:gosec // clamped
}

// epochDuration parses an epoch.
func epochDuration(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
}

// errorResponseMin is the minimum size of a message with a result code (RFC 6887,
// section 8.3).
const errorResponseMin = 4

// ErrorResponse has the fields with which all responses begin. Only these fields
// can be parsed if the version or opcode of a response is unknown, or if the
// response is truncated (RFC 6887, sections 8.3 and 9).
type ErrorResponse struct {
	// Version is the version that the server supports. Version 0 is NAT-PMP.
	Version uint8
	// Opcode is the opcode as received. The NAT-PMP response to an unknown version
	// may have opcode 0, without the response bit (RFC 6886, section 3.5).
	Opcode Opcode
	Result ResultCode
	// Lifetime is how long the server expects the error to last. Epoch is the time
	// since the server's table was last empty. They are zero if the response has
	// version 0 or is too short for a header: these bytes then have another
	// meaning.
	Lifetime time.Duration
	Epoch    time.Duration
}

// AppendBinary appends the message to b, as a header without a payload. It never
// fails. Servers should use [AppendErrorResponse], which follows the standard.
func (r ErrorResponse) AppendBinary(b []byte) ([]byte, error) {
	return appendResponseHeader(b, r.Version, r.Opcode, r.Result, r.Lifetime, r.Epoch), nil
}

// MarshalBinary returns the message. It never fails.
func (r ErrorResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseErrorResponse parses the beginning of any response of version 2, including a
// success. It also parses the UnsupportedVersion responses of servers that support
// another version, of any length. It returns io.ErrUnexpectedEOF if b is too short
// for a result. Clients ignore other responses of fewer than 24 bytes (RFC 6887,
// section 8.3), but such a response shows that the server supports PCP.
func ParseErrorResponse(b []byte) (ErrorResponse, error) {
	if len(b) < errorResponseMin {
		return ErrorResponse{}, io.ErrUnexpectedEOF
	}
	r := ErrorResponse{Version: b[0], Opcode: Opcode(b[1]), Result: ResultCode(b[3])}
	isNATPMP := r.Version == 0
	if r.Opcode&OpResponse == 0 && (!isNATPMP || r.Opcode != 0) {
		return ErrorResponse{}, fmt.Errorf("pcp: %w: %v instead of a response", backends.ErrMalformed, r.Opcode)
	}
	if r.Version != Version && r.Result != UnsupportedVersion || isNATPMP && b[2] != 0 {
		return ErrorResponse{}, fmt.Errorf("pcp: %w: a response of version %d", backends.ErrMalformed, r.Version)
	}
	if r.Result != UnsupportedVersion && len(b) >= headerSize {
		if err := checkSize(b); err != nil {
			return ErrorResponse{}, err
		}
	}
	if !isNATPMP && len(b) >= headerSize {
		r.Lifetime, r.Epoch = duration(b[4:]), epochDuration(b[8:])
	}
	return r, nil
}

// AppendErrorResponse appends to b the response with which a server refuses a
// request. The response repeats the request with its options under the header of a
// response, as far as it fits (RFC 6887, section 8.2). The request may have any
// version and opcode. If the code means that the server could not parse the request
// or rejects its client address, the last 96 bits of the client's address stay in
// the header (RFC 6887, section 7.2). The request must not overlap the appended
// bytes.
//
// AppendErrorResponse fails with io.ErrUnexpectedEOF if the request has fewer than
// two bytes. It fails with ErrInvalid if the code is Success, or if the request is
// itself a response.
func AppendErrorResponse(b, request []byte, code ResultCode, lifetime, epoch time.Duration) ([]byte, error) {
	if len(request) < 2 {
		return b, io.ErrUnexpectedEOF
	}
	op := Opcode(request[1])
	if op&OpResponse != 0 || code == Success {
		return b, fmt.Errorf("pcp: %w: %v as a response to %v", backends.ErrInvalid, code, op)
	}
	const tail = 12 // the offset of the last 96 bits of the client's address
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
	if !code.keepsClientAddr() {
		clear(b[start : start+headerSize-tail])
	}
	return b, nil
}

// keepsClientAddr reports whether an error response with this code keeps the last
// 96 bits of the client's address in the header: the server did not read the
// request to its end.
func (c ResultCode) keepsClientAddr() bool {
	switch c {
	case UnsupportedVersion, UnsupportedOpcode, MalformedRequest, AddressMismatch:
		return true
	}
	return false
}
