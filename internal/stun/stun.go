// Package stun has the messages of STUN (RFC 8489) with the attributes that ask a server to answer
// from another address and to another port (RFC 5780).
package stun

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Port is the default UDP port of a server.
const Port = 3478

// MaxReason is the maximum length of Response.Reason.
const MaxReason = 128

const (
	cookie     = 0x2112A442
	headerSize = 20

	typeRequest = 0x0001 // of the method Binding
	typeSuccess = 0x0101
	typeError   = 0x0111

	attrChangeRequest    = 0x0003
	attrErrorCode        = 0x0009
	attrXORMappedAddress = 0x0020
	attrResponsePort     = 0x0027
	attrOtherAddress     = 0x802C

	changePort = 2
	changeIP   = 4
)

// The attributes below 0x8000 that a response may have although this package does not read them. A
// response with another one must not be used (RFC 8489 §6.3.3).
var ignored = map[uint16]bool{
	0x0001: true, // MAPPED-ADDRESS: routers change it
	0x0004: true, // SOURCE-ADDRESS of RFC 3489
	0x0005: true, // CHANGED-ADDRESS of RFC 3489
	0x0006: true, // USERNAME
	0x0008: true, // MESSAGE-INTEGRITY
	0x000A: true, // UNKNOWN-ATTRIBUTES
	0x0014: true, // REALM
	0x0015: true, // NONCE
	0x001C: true, // MESSAGE-INTEGRITY-SHA256
	0x0026: true, // PADDING
}

// ID is the transaction ID of a request and its responses. It has 96 bits.
type ID [12]byte

// NewID returns a random ID.
func NewID() (id ID) {
	_, _ = rand.Read(id[:]) // it never fails
	return id
}

// First returns the magic cookie and the ID. They follow the first four bytes of a message.
func (id ID) First() string {
	return string(binary.BigEndian.AppendUint32(nil, cookie)) + string(id[:])
}

// Request is a Binding request.
type Request struct {
	ID ID
	// ResponsePort is the port to which the server sends its response, instead of the source port of
	// the request. 0 means the source port. The address is always the source of the request.
	ResponsePort uint16
	// ChangeIP and ChangePort make the server respond from its alternate address or port.
	ChangeIP, ChangePort bool
}

// Append appends the message to b.
func (r Request) Append(b []byte) []byte {
	var attrs []byte
	if r.ResponsePort != 0 {
		attrs = append(attrs, attrResponsePort>>8, attrResponsePort&0xFF, 0, 4)
		attrs = binary.BigEndian.AppendUint16(attrs, r.ResponsePort)
		attrs = append(attrs, 0, 0)
	}
	var change byte
	if r.ChangeIP {
		change |= changeIP
	}
	if r.ChangePort {
		change |= changePort
	}
	if change != 0 {
		attrs = append(attrs, attrChangeRequest>>8, attrChangeRequest&0xFF, 0, 4, 0, 0, 0, change)
	}
	b = binary.BigEndian.AppendUint16(b, typeRequest)
	b = binary.BigEndian.AppendUint16(b, uint16(len(attrs))) //nolint:gosec // at most 16
	b = append(b, r.ID.First()...)
	return append(b, attrs...)
}

// Response is a response to a Binding request.
type Response struct {
	// Mapped is the source of the request as the server saw it, from XOR-MAPPED-ADDRESS. It is the
	// zero AddrPort if the response does not have it.
	Mapped netip.AddrPort
	// Other is the alternate address and port of the server, or the zero AddrPort.
	Other netip.AddrPort
	// Code is 0 for a success, and otherwise the code of the error, from 300 to 699.
	Code int
	// Reason is the text of an error, at most MaxReason bytes long. It may have any bytes.
	Reason string
}

var (
	errNotSTUN   = errors.New("not a STUN message")
	errMalformed = errors.New("malformed STUN response")
)

// IDOf returns the transaction ID of a message. It returns false if b is not a STUN message.
func IDOf(b []byte) (id ID, ok bool) {
	if len(b) < headerSize || b[0]&0xC0 != 0 || binary.BigEndian.Uint32(b[4:]) != cookie {
		return id, false
	}
	return ID(b[8:headerSize]), true
}

// ParseResponse reads a response to a Binding request. Of a repeated attribute, it reads only the first
// (RFC 8489 §14).
func ParseResponse(b []byte) (r Response, err error) {
	if _, ok := IDOf(b); !ok {
		return r, errNotSTUN
	}
	kind, length := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case kind != typeSuccess && kind != typeError:
		return r, fmt.Errorf("%w: message type 0x%04x", errMalformed, kind)
	case length != len(b)-headerSize:
		return r, fmt.Errorf("%w: length %d in %d bytes", errMalformed, length, len(b))
	}
	var seen [3]bool // XOR-MAPPED-ADDRESS, OTHER-ADDRESS, ERROR-CODE
	isFirst := func(i int) bool {
		before := seen[i]
		seen[i] = true
		return !before
	}
	for rest := b[headerSize:]; len(rest) > 0; {
		if len(rest) < 4 {
			return Response{}, fmt.Errorf("%w: an attribute is truncated", errMalformed)
		}
		attr, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		padded := (size + 3) &^ 3
		if padded > len(rest)-4 {
			return Response{}, fmt.Errorf("%w: attribute 0x%04x is truncated", errMalformed, attr)
		}
		value := rest[4 : 4+size]
		rest = rest[4+padded:]
		switch {
		case attr == attrXORMappedAddress && isFirst(0):
			r.Mapped, err = parseAddress(value, b[4:headerSize])
		case attr == attrOtherAddress && isFirst(1):
			r.Other, err = parseAddress(value, make([]byte, 16))
		case attr == attrErrorCode && isFirst(2):
			r.Code, r.Reason, err = parseError(value)
		case attr == attrXORMappedAddress, attr == attrErrorCode, attr >= 0x8000, ignored[attr]:
		default:
			err = fmt.Errorf("%w: unknown attribute 0x%04x", errMalformed, attr)
		}
		if err != nil {
			return Response{}, err
		}
	}
	switch isError := kind == typeError; {
	case isError && r.Code == 0:
		return Response{}, fmt.Errorf("%w: an error without a code", errMalformed)
	case !isError:
		r.Code, r.Reason = 0, ""
	default:
		r.Mapped, r.Other = netip.AddrPort{}, netip.AddrPort{}
	}
	return r, nil
}

// parseAddress reads the value of an attribute that has an address and a port. They are combined with
// mask by XOR (RFC 8489 §14.2).
func parseAddress(v, mask []byte) (netip.AddrPort, error) {
	if len(v) < 2 {
		return netip.AddrPort{}, fmt.Errorf("%w: an address of %d bytes", errMalformed, len(v))
	}
	size := map[byte]int{1: 4, 2: 16}[v[1]]
	if size == 0 || len(v) != 4+size {
		return netip.AddrPort{}, fmt.Errorf("%w: an address of family %d in %d bytes", errMalformed, v[1], len(v))
	}
	ip := make([]byte, size)
	for i := range ip {
		ip[i] = v[4+i] ^ mask[i]
	}
	addr, _ := netip.AddrFromSlice(ip)
	if addr.Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("%w: the IPv4 address %v in an IPv6 address", errMalformed, addr.Unmap())
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(v[2:])^binary.BigEndian.Uint16(mask)), nil
}

// parseError reads the value of ERROR-CODE (RFC 8489 §14.8).
func parseError(v []byte) (code int, reason string, err error) {
	if len(v) < 4 {
		return 0, "", fmt.Errorf("%w: an error code of %d bytes", errMalformed, len(v))
	}
	class, number := int(v[2]&7), int(v[3])
	if class < 3 || class > 6 || number > 99 {
		return 0, "", fmt.Errorf("%w: error class %d, number %d", errMalformed, class, number)
	}
	text := bytes.TrimRight(v[4:], "\x00") // coturn counts the padding
	return class*100 + number, string(text[:min(len(text), MaxReason)]), nil
}
