package natpmp

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// Port is the UDP port on which gateways listen. AnnouncePort is the UDP port on
// which hosts listen for announcements (RFC 6886, sections 3.1 and 3.2.1).
const (
	Port         = 5351
	AnnouncePort = 5350
)

// Version is the only version of the protocol (RFC 6886, section 3.5).
const Version = 0

// Opcode identifies the kind of a message (RFC 6886, sections 3.2 and 3.3).
type Opcode uint8

// The opcodes of requests. A response has the request's opcode plus OpResponse.
const (
	OpExternalAddr Opcode = 0
	OpMapUDP       Opcode = 1
	OpMapTCP       Opcode = 2
	OpResponse     Opcode = 128
)

// String returns the name of the opcode.
func (o Opcode) String() string {
	names := [...]string{OpExternalAddr: "external address", OpMapUDP: "map udp", OpMapTCP: "map tcp"}
	request := o &^ OpResponse
	switch {
	case int(request) >= len(names):
		return fmt.Sprintf("opcode %d", uint8(o))
	case o != request:
		return names[request] + " response"
	}
	return names[request]
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

// protocol returns the protocol that the opcode maps, with or without the response
// bit. It is the inverse of mapOpcode.
func (o Opcode) protocol() (backends.Protocol, bool) {
	switch o &^ OpResponse {
	case OpMapUDP:
		return backends.UDP, true
	case OpMapTCP:
		return backends.TCP, true
	}
	return 0, false
}

// Header is the beginning of every message (RFC 6886, section 3.5).
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
		h.Result = ResultCode(binary.BigEndian.Uint16(b[2:]))
	}
	return h, nil
}

// checkHeader returns an error unless b is a message of this version with the
// opcode and at least size bytes.
func checkHeader(b []byte, size int, want Opcode) error {
	if len(b) < size {
		return io.ErrUnexpectedEOF
	}
	if b[0] != Version {
		return &VersionError{Version: b[0]}
	}
	if got := Opcode(b[1]); got != want {
		return fmt.Errorf("natpmp: %w: %v instead of %v", backends.ErrMalformed, got, want)
	}
	return nil
}

// seconds converts a lifetime to whole seconds, rounded up and limited to the range
// of the field.
func seconds(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	s := (d-1)/time.Second + 1
	return uint32(min(s, math.MaxUint32)) //nolint:gosec // clamped
}

// duration parses a field that counts seconds.
func duration(b []byte) time.Duration {
	return time.Duration(binary.BigEndian.Uint32(b)) * time.Second
}

// The sizes of the messages about the external address (RFC 6886, section 3.2).
const (
	externalAddrRequestSize  = 2
	externalAddrResponseSize = 12
)

// ExternalAddrRequest requests the gateway's external address (RFC 6886, section
// 3.2).
type ExternalAddrRequest struct{}

// AppendBinary appends the message to b. It never fails.
func (ExternalAddrRequest) AppendBinary(b []byte) ([]byte, error) {
	return append(b, Version, byte(OpExternalAddr)), nil
}

// MarshalBinary returns the message. It never fails.
func (r ExternalAddrRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseExternalAddrRequest parses the message. It ignores additional bytes.
func ParseExternalAddrRequest(b []byte) (ExternalAddrRequest, error) {
	return ExternalAddrRequest{}, checkHeader(b, externalAddrRequestSize, OpExternalAddr)
}

// ExternalAddrResponse has the gateway's external address. Gateways also announce
// it to 224.0.0.1:5350 (RFC 6886, sections 3.2 and 3.2.1).
type ExternalAddrResponse struct {
	Result ResultCode
	// Epoch is the time since the gateway's mapping table was last empty.
	Epoch time.Duration
	// Addr is an IPv4 address. Ignore it unless Result is Success. The address
	// 0.0.0.0 means that the gateway has no external address.
	Addr netip.Addr
}

// AppendBinary appends the message to b. An address that is not IPv4 is
// written as 0.0.0.0. It never fails.
func (r ExternalAddrResponse) AppendBinary(b []byte) ([]byte, error) {
	b = appendResponseHeader(b, OpExternalAddr, r.Result, r.Epoch)
	var a4 [4]byte
	if addr := r.Addr.Unmap(); addr.Is4() {
		a4 = addr.As4()
	}
	return append(b, a4[:]...), nil
}

// MarshalBinary returns the message. It never fails.
func (r ExternalAddrResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseExternalAddrResponse parses the message. It ignores additional bytes. For a
// shorter error response use [ParseErrorResponse].
func ParseExternalAddrResponse(b []byte) (ExternalAddrResponse, error) {
	if err := checkHeader(b, externalAddrResponseSize, OpExternalAddr|OpResponse); err != nil {
		return ExternalAddrResponse{}, err
	}
	return ExternalAddrResponse{
		Result: ResultCode(binary.BigEndian.Uint16(b[2:])),
		Epoch:  duration(b[4:]),
		Addr:   netip.AddrFrom4([4]byte(b[8:12])),
	}, nil
}

// appendResponseHeader appends the first eight bytes of a response.
func appendResponseHeader(b []byte, op Opcode, result ResultCode, epoch time.Duration) []byte {
	b = append(b, Version, byte(op|OpResponse))
	b = binary.BigEndian.AppendUint16(b, uint16(result))
	return binary.BigEndian.AppendUint32(b, epochSeconds(epoch))
}

// epochSeconds rounds down, because a gateway counts only full seconds.
func epochSeconds(d time.Duration) uint32 { return seconds(d.Truncate(time.Second)) }

// The minimum and the usual size of an error response without a payload. The
// standard specifies eight bytes for the response to an unknown version. To an
// unknown opcode, the gateway returns the request itself, which can be shorter.
const (
	errorResponseMin  = 4
	errorResponseSize = 8
)

// ErrorResponse answers a request with an unknown version or opcode (RFC 6886,
// section 3.5).
type ErrorResponse struct {
	// Version is the version that the gateway supports.
	Version uint8
	// Opcode is the opcode as received. In the standard's response to an unknown
	// version, it is 0 without the response bit. Common gateways set the bit.
	Opcode Opcode
	Result ResultCode
	// Epoch is zero unless Result is UnsupportedVersion. In other errors of this
	// form, some gateways put other data in this field.
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

// ParseErrorResponse parses an error response of version 0 of any length. It also
// parses the responses of gateways that support another version: of these it reads
// the version and, if present, the result. It returns io.ErrUnexpectedEOF if b is
// too short for that.
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
