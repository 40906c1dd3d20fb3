package pcp

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// mapSize is the size of map messages without options (RFC 6887, section 11.1).
const mapSize = headerSize + 36

// MapRequest creates, renews or deletes a mapping (RFC 6887, sections 11.1 and 15).
type MapRequest struct {
	// Client is the address from which the request is sent. Required. The mapping
	// forwards to this address, unless Options.ThirdParty is set.
	Client netip.Addr
	// Lifetime is the requested lifetime, sent in whole seconds, rounded up.
	// backends.Forever is sent as 2³²−1. Any other value above 2³²−2 seconds is
	// sent as 2³²−2. Zero deletes the mapping.
	Lifetime time.Duration
	// Nonce is the secret of the mapping, the same in all requests for it.
	Nonce Nonce
	// Protocol may have any value. Protocol 0 with InternalPort 0 means all
	// protocols.
	Protocol backends.Protocol
	// InternalPort is the port to which the mapping forwards. Port 0 means all
	// ports of the protocol.
	InternalPort uint16
	// ExternalPort is the suggested port. If it is 0, the server chooses. It must
	// be 0 if Lifetime is 0.
	ExternalPort uint16
	// External is the suggested address. With 0.0.0.0 or ::, the server chooses an
	// address of that family. With the zero Addr, it chooses an address of the
	// client's family. A parsed request never has the zero Addr.
	External netip.Addr
	Options  Options
}

// AppendBinary appends the message to b. It fails with ErrInvalid for a request
// that servers reject as malformed, and for a message of more than MaxMessage
// bytes.
func (r MapRequest) AppendBinary(b []byte) ([]byte, error) {
	if err := checkAppend(r.Client, &r.Options, mapSize, OpMap, r.validate()); err != nil {
		return b, err
	}
	b = appendRequestHeader(b, OpMap, r.Lifetime, r.Client)
	b = appendMapping(b, r.Nonce, r.Protocol, r.InternalPort, r.ExternalPort, suggestedAddr(r.External, r.Client))
	return r.Options.append(b), nil
}

// MarshalBinary returns the message. It fails in the same cases as AppendBinary.
func (r MapRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseMapRequest parses the message, as a server does. It returns a
// *[RequestError] if the server must refuse the request, and another error if b is
// not a request. If b is too short for a request, that error is
// io.ErrUnexpectedEOF. Unknown options are refused or ignored, depending on their
// codes (RFC 6887, section 7.3).
func ParseMapRequest(b []byte) (MapRequest, error) { return parseRequest(b, mapSize, OpMap) }

// parseRequest parses the fields of a map request in a map or peer request, whose size
// without options is given.
func parseRequest(b []byte, size int, op Opcode) (MapRequest, error) {
	if err := checkRequest(b, size, op); err != nil {
		return MapRequest{}, err
	}
	options, err := parseRequestOptions(b[size:], op)
	if err != nil {
		return MapRequest{}, err
	}
	r := MapRequest{
		Client:       parseAddr(b[8:]),
		Lifetime:     duration(b[4:]),
		Nonce:        Nonce(b[24:36]),
		Protocol:     backends.Protocol(b[36]),
		InternalPort: binary.BigEndian.Uint16(b[40:]),
		ExternalPort: binary.BigEndian.Uint16(b[42:]),
		External:     parseAddr(b[44:]),
		Options:      options,
	}
	if invalid := r.validate(); invalid != nil {
		return MapRequest{}, invalid
	}
	return r, nil
}

// validate returns why every server has to refuse the request, or nil (RFC 6887,
// sections 11.3 and 13).
func (r *MapRequest) validate() *RequestError {
	switch {
	case r.Protocol == 0 && r.InternalPort != 0:
		return &RequestError{Code: MalformedRequest, Reason: "protocol 0 with an internal port"}
	case r.Options.ThirdParty.IsValid() && canonicalAddr(r.Options.ThirdParty) == canonicalAddr(r.Client):
		return &RequestError{Code: MalformedRequest, Reason: "the third party is the client"}
	case r.Options.PreferFailure && (r.ExternalPort == 0 || r.Lifetime <= 0):
		return &RequestError{Code: MalformedOption, Reason: "prefer failure without an external port and a lifetime"}
	case len(r.Options.Filters) != 0 && r.Lifetime <= 0:
		return &RequestError{Code: MalformedOption, Reason: "filter without a lifetime"}
	}
	return nil
}

// MapResponse answers a MapRequest, or reports a change of its mapping (RFC 6887,
// sections 11.1 and 14.2).
type MapResponse struct {
	Result ResultCode
	// Lifetime is the granted lifetime; 2³²−1 seconds is backends.Forever. In an
	// error, it is how long the server expects the error to last.
	Lifetime time.Duration
	// Epoch is the time since the server's table was last empty.
	Epoch        time.Duration
	Nonce        Nonce
	Protocol     backends.Protocol
	InternalPort uint16
	// ExternalPort and External are the granted port and address. In an error, they
	// are normally the suggested values. Some servers put their own address there.
	// The zero Addr is written as 0.0.0.0.
	ExternalPort uint16
	External     netip.Addr
	// Options are the options that the server processed, and in errors the options
	// of the request. Some servers repeat all options in any case.
	Options Options
}

// AppendBinary appends the message to b. It fails with ErrInvalid for options that
// cannot be encoded, and for a message of more than MaxMessage bytes.
func (r MapResponse) AppendBinary(b []byte) ([]byte, error) {
	if err := r.Options.check(mapSize, OpMap); err != nil {
		return b, err
	}
	b = appendResponseHeader(b, Version, OpMap|OpResponse, r.Result, r.Lifetime, r.Epoch)
	b = appendMapping(b, r.Nonce, r.Protocol, r.InternalPort, r.ExternalPort, suggestedAddr(r.External, netip.Addr{}))
	return r.Options.append(b), nil
}

// MarshalBinary returns the message. It fails in the same cases as AppendBinary.
func (r MapResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseMapResponse parses the message. It ignores unknown and malformed options.
// For a shorter error response use [ParseErrorResponse].
func ParseMapResponse(b []byte) (MapResponse, error) { return parseResponse(b, mapSize, OpMap) }

// parseResponse is parseRequest for responses.
func parseResponse(b []byte, size int, op Opcode) (MapResponse, error) {
	if err := checkResponse(b, size, op); err != nil {
		return MapResponse{}, err
	}
	return MapResponse{
		Result:       ResultCode(b[3]),
		Lifetime:     duration(b[4:]),
		Epoch:        epochDuration(b[8:]),
		Nonce:        Nonce(b[24:36]),
		Protocol:     backends.Protocol(b[36]),
		InternalPort: binary.BigEndian.Uint16(b[40:]),
		ExternalPort: binary.BigEndian.Uint16(b[42:]),
		External:     parseAddr(b[44:]),
		Options:      parseResponseOptions(b[size:], op),
	}, nil
}

// appendMapping appends the fields that follow the header in all messages about
// mappings, for each opcode.
func appendMapping(b []byte, nonce Nonce, p backends.Protocol, internal, external uint16, addr netip.Addr) []byte {
	b = append(b, nonce[:]...)
	b = append(b, byte(p), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, internal)
	b = binary.BigEndian.AppendUint16(b, external)
	return appendAddr(b, addr)
}
