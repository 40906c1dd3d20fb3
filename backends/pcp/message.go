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

// Port is the UDP port on which servers listen; AnnouncePort is the one on
// which hosts listen for announcements (RFC 6887, sections 8.1 and 14.1).
const (
	Port         = 5351
	AnnouncePort = 5350
)

// Version is the protocol's version (RFC 6887, section 7.1).
const Version = 2

// MaxMessage is the greatest size of a message in bytes. All sizes are
// multiples of four (RFC 6887, section 7).
const MaxMessage = 1100

// headerSize is the size of what requests and responses begin with (RFC 6887,
// sections 7.1 and 7.2).
const headerSize = 24

// Opcode is what a message asks or answers (RFC 6887, section 19.2).
type Opcode uint8

// The opcodes of requests. A response has the request's opcode plus OpResponse.
const (
	OpAnnounce       Opcode = 0
	OpMap            Opcode = 1
	OpPeer           Opcode = 2
	OpAuthentication Opcode = 3 // RFC 7652
	OpResponse       Opcode = 128
)

// String names the opcode.
func (o Opcode) String() string {
	suffix := ""
	if o&OpResponse != 0 {
		suffix = " response"
	}
	switch o &^ OpResponse {
	case OpAnnounce:
		return "announce" + suffix
	case OpMap:
		return "map" + suffix
	case OpPeer:
		return "peer" + suffix
	case OpAuthentication:
		return "authentication" + suffix
	}
	return fmt.Sprintf("opcode %d", uint8(o))
}

// Header is what all messages begin with (RFC 6887, sections 7.1 and 7.2).
type Header struct {
	Version uint8
	Opcode  Opcode
	// Result is the result code of a response. Zero in requests, and in
	// responses too short to carry one.
	Result ResultCode
}

// ParseHeader reads the start of any message, of any version. It returns
// io.ErrUnexpectedEOF for fewer than two bytes.
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

// checkRequest refuses what is not a request of this version with the opcode.
// The order is that of RFC 6887, section 8.2.
func checkRequest(b []byte, size int, want Opcode) error {
	if len(b) < 2 {
		return io.ErrUnexpectedEOF
	}
	got := Opcode(b[1])
	switch {
	case got&OpResponse != 0:
		return fmt.Errorf("pcp: %w: %v where a request was expected", backends.ErrMalformed, got)
	case b[0] != Version:
		return &RequestError{Code: UnsupportedVersion, Reason: fmt.Sprintf("version %d", b[0])}
	case len(b) < headerSize:
		return io.ErrUnexpectedEOF
	case len(b) > MaxMessage || len(b)%4 != 0:
		return &RequestError{Code: MalformedRequest, Reason: fmt.Sprintf("%d bytes", len(b))}
	case got != want:
		return &RequestError{Code: UnsupportedOpcode, Reason: fmt.Sprintf("%v where %v was expected", got, want)}
	case len(b) < size:
		return &RequestError{Code: MalformedRequest, Reason: fmt.Sprintf("%v of %d bytes", got, len(b))}
	}
	return nil
}

// checkResponse refuses what is not a response of this version with the
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
		return fmt.Errorf("pcp: %w: %v where %v was expected", backends.ErrMalformed, got, want|OpResponse)
	}
	if len(b) < size {
		return io.ErrUnexpectedEOF
	}
	return checkSize(b)
}

// checkSize refuses sizes that no response has.
func checkSize(b []byte) error {
	if len(b) > MaxMessage || len(b)%4 != 0 {
		return fmt.Errorf("pcp: %w: a response of %d bytes", backends.ErrMalformed, len(b))
	}
	return nil
}

// appendRequestHeader appends what requests begin with (RFC 6887, section 7.1).
func appendRequestHeader(b []byte, op Opcode, lifetime time.Duration, client netip.Addr) []byte {
	b = append(b, Version, byte(op), 0, 0)
	b = binary.BigEndian.AppendUint32(b, seconds(lifetime))
	return appendAddr(b, client)
}

// appendResponseHeader appends what responses begin with (RFC 6887, section 7.2).
func appendResponseHeader(b []byte, version uint8, op Opcode, result ResultCode, lifetime, epoch time.Duration) []byte {
	b = append(b, version, byte(op), 0, byte(result))
	b = binary.BigEndian.AppendUint32(b, seconds(lifetime))
	b = binary.BigEndian.AppendUint32(b, epochSeconds(epoch))
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

// appendAddr appends an address in 16 bytes, IPv4 in its IPv6 form (RFC 6887,
// section 5). The zero Addr is written as ::.
func appendAddr(b []byte, addr netip.Addr) []byte {
	a16 := addr.As16()
	return append(b, a16[:]...)
}

// parseAddr is the inverse of appendAddr.
func parseAddr(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b[:16])).Unmap() }

// canonicalAddr is the address as parseAddr would read it.
func canonicalAddr(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// suggestedAddr is the address on the wire for a wish: with none, the family's
// unspecified address (RFC 6887, section 5).
func suggestedAddr(requested, family netip.Addr) netip.Addr {
	switch {
	case requested.IsValid():
		return requested
	case family.Unmap().Is6():
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// seconds rounds a lifetime up to the wire's unit and keeps to its range, of
// which the last value means no end (RFC 6887, section 15).
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

// duration reads a lifetime.
func duration(b []byte) time.Duration {
	s := binary.BigEndian.Uint32(b)
	if s == math.MaxUint32 {
		return backends.Forever
	}
	return time.Duration(s) * time.Second
}

// epochSeconds rounds down: a clock that has not reached a second has not
// told it.
func epochSeconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), math.MaxUint32)) //nolint:gosec // clamped
}

// epochDuration reads an epoch.
func epochDuration(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
}

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
	isNATPMP := r.Version == 0
	if r.Opcode&OpResponse == 0 && (!isNATPMP || r.Opcode != 0) {
		return ErrorResponse{}, fmt.Errorf("pcp: %w: %v where a response was expected", backends.ErrMalformed, r.Opcode)
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
	if !code.keepsClientAddr() {
		clear(b[start : start+headerSize-tail])
	}
	return b, nil
}

// keepsClientAddr reports whether a server answers the code to a request that it did
// not read to its end.
func (c ResultCode) keepsClientAddr() bool {
	switch c {
	case UnsupportedVersion, UnsupportedOpcode, MalformedRequest, AddressMismatch:
		return true
	}
	return false
}
