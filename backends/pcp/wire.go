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

// plain is the address as parseAddr would read it.
func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// suggestion is the address on the wire for a wish: with none, the family's
// unspecified address (RFC 6887, section 5).
func suggestion(wish, family netip.Addr) netip.Addr {
	switch {
	case wish.IsValid():
		return wish
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
