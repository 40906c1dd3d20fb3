package natpmp

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/natforward/goforward/backends"
)

// Port is the UDP port on which gateways listen; AnnouncePort is the one on
// which hosts listen for announcements (RFC 6886, section 3.1 and 3.2.1).
const (
	Port         = 5351
	AnnouncePort = 5350
)

// Version is the protocol's only version (RFC 6886, section 3.5).
const Version = 0

// Opcode is what a message asks or answers (RFC 6886, sections 3.2 and 3.3).
type Opcode uint8

// The opcodes of requests. A response has the request's opcode plus OpResponse.
const (
	OpExternalAddr Opcode = 0
	OpMapUDP       Opcode = 1
	OpMapTCP       Opcode = 2
	OpResponse     Opcode = 128
)

// String names the opcode.
func (o Opcode) String() string {
	suffix := ""
	if o&OpResponse != 0 {
		suffix = " response"
	}
	switch o &^ OpResponse {
	case OpExternalAddr:
		return "external address" + suffix
	case OpMapUDP:
		return "map udp" + suffix
	case OpMapTCP:
		return "map tcp" + suffix
	}
	return fmt.Sprintf("opcode %d", uint8(o))
}

// mapOpcode returns the opcode that maps ports of p.
func mapOpcode(p backends.Protocol) (Opcode, error) {
	switch p {
	case backends.UDP:
		return OpMapUDP, nil
	case backends.TCP:
		return OpMapTCP, nil
	}
	return 0, fmt.Errorf("natpmp: %w: NAT-PMP maps tcp and udp, not %v", backends.ErrUnsupported, p)
}

// protocol is the inverse of mapOpcode, with or without the response bit.
func (o Opcode) protocol() (backends.Protocol, bool) {
	switch o &^ OpResponse {
	case OpMapUDP:
		return backends.UDP, true
	case OpMapTCP:
		return backends.TCP, true
	}
	return 0, false
}

// Header is what all messages begin with (RFC 6886, section 3.5).
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
		h.Result = ResultCode(binary.BigEndian.Uint16(b[2:]))
	}
	return h, nil
}

// checkHeader refuses what is not a message of this version with the opcode.
func checkHeader(b []byte, size int, want Opcode) error {
	if len(b) < size {
		return io.ErrUnexpectedEOF
	}
	if b[0] != Version {
		return &VersionError{Version: b[0]}
	}
	if got := Opcode(b[1]); got != want {
		return fmt.Errorf("natpmp: %w: %v where %v was expected", backends.ErrMalformed, got, want)
	}
	return nil
}

// seconds rounds up to the wire's unit and keeps to its range.
func seconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	s := (d-1)/time.Second + 1
	return uint32(min(s, math.MaxUint32)) //nolint:gosec // clamped
}

// duration reads the wire's unit.
func duration(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
}
