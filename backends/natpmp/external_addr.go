package natpmp

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// The sizes of the messages about the external address (RFC 6886, section 3.2).
const (
	externalAddrRequestSize  = 2
	externalAddrResponseSize = 12
)

// ExternalAddrRequest asks for the gateway's external address (RFC 6886,
// section 3.2).
type ExternalAddrRequest struct{}

// AppendBinary appends the message to b. It never fails.
func (ExternalAddrRequest) AppendBinary(b []byte) ([]byte, error) {
	return append(b, Version, byte(OpExternalAddr)), nil
}

// MarshalBinary returns the message. It never fails.
func (r ExternalAddrRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseExternalAddrRequest reads the message; more bytes than it has are
// ignored.
func ParseExternalAddrRequest(b []byte) (ExternalAddrRequest, error) {
	return ExternalAddrRequest{}, checkHeader(b, externalAddrRequestSize, OpExternalAddr)
}

// ExternalAddrResponse tells the gateway's external address. It is also what
// a gateway announces to 224.0.0.1:5350 (RFC 6886, sections 3.2 and 3.2.1).
type ExternalAddrResponse struct {
	Result ResultCode
	// Epoch is the time since the gateway's table was last empty.
	Epoch time.Duration
	// Addr is an IPv4 address. Ignore it unless Result is Success; 0.0.0.0
	// means that the gateway does not know.
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

// ParseExternalAddrResponse reads the message; more bytes than it has are
// ignored. A shorter error response is [ParseErrorResponse]'s.
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

// appendResponseHeader appends the eight bytes that all responses begin with.
func appendResponseHeader(b []byte, op Opcode, result ResultCode, epoch time.Duration) []byte {
	b = append(b, Version, byte(op|OpResponse))
	b = binary.BigEndian.AppendUint16(b, uint16(result))
	return binary.BigEndian.AppendUint32(b, epochSeconds(epoch))
}

// epochSeconds rounds down: a clock that has not reached a second has not
// told it.
func epochSeconds(d time.Duration) uint32 { return seconds(d.Truncate(time.Second)) }
