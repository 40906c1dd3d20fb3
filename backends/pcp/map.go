package pcp

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// mapSize is the size of messages about mappings, without their options
// (RFC 6887, section 11.1).
const mapSize = headerSize + 36

// MapRequest asks for a mapping, for more of its lifetime, or for its end
// (RFC 6887, sections 11.1 and 15).
type MapRequest struct {
	// Client is the address that the request is sent from. Required. The mapping
	// leads to it, unless Options.ThirdParty is set.
	Client netip.Addr
	// Lifetime is a wish, sent in whole seconds, rounded up. backends.Forever is
	// sent as 2³²−1, anything longer than 2³²−2 seconds as that. Zero deletes.
	Lifetime time.Duration
	// Nonce is the mapping's secret, the same in all requests about it.
	Nonce Nonce
	// Protocol is any; 0, with InternalPort 0, means all.
	Protocol backends.Protocol
	// InternalPort is the port that the mapping leads to; 0 means all of the
	// protocol's.
	InternalPort uint16
	// ExternalPort is a wish; with 0 the server chooses. To be 0 where Lifetime is.
	ExternalPort uint16
	// External is a wish. With 0.0.0.0 or :: the server chooses an address of
	// that family, with the zero Addr one of the client's family. As parsed it is
	// never the zero Addr.
	External netip.Addr
	Options  Options
}

// AppendBinary appends the message to b. It fails with ErrInvalid for what a
// server would call malformed, and for a message of more than MaxMessage bytes.
func (r MapRequest) AppendBinary(b []byte) ([]byte, error) {
	if err := checkAppend(r.Client, &r.Options, mapSize, OpMap, r.validate()); err != nil {
		return b, err
	}
	b = appendRequestHeader(b, OpMap, r.Lifetime, r.Client)
	b = appendMapping(b, r.Nonce, r.Protocol, r.InternalPort, r.ExternalPort, suggestedAddr(r.External, r.Client))
	return r.Options.append(b), nil
}

// MarshalBinary returns what AppendBinary appends.
func (r MapRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseMapRequest reads the message, as a server does. It returns a
// *[RequestError] for a request to be refused, and another error for what is
// no request: io.ErrUnexpectedEOF where b is too short for one. Unknown options
// are refused or ignored as their codes say (RFC 6887, section 7.3).
func ParseMapRequest(b []byte) (MapRequest, error) {
	if err := checkRequest(b, mapSize, OpMap); err != nil {
		return MapRequest{}, err
	}
	options, err := parseRequestOptions(b[mapSize:], OpMap)
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
		return &RequestError{Code: MalformedRequest, Reason: "a port of all protocols"}
	case r.Options.ThirdParty.IsValid() && canonicalAddr(r.Options.ThirdParty) == canonicalAddr(r.Client):
		return &RequestError{Code: MalformedRequest, Reason: "the third party is the client"}
	case r.Options.PreferFailure && (r.ExternalPort == 0 || r.Lifetime <= 0):
		return &RequestError{Code: MalformedOption, Reason: "prefer failure without an external port and a lifetime"}
	case len(r.Options.Filters) != 0 && r.Lifetime <= 0:
		return &RequestError{Code: MalformedOption, Reason: "filter without a lifetime"}
	}
	return nil
}

// MapResponse answers a MapRequest, or tells of a change to its mapping
// (RFC 6887, sections 11.1 and 14.2).
type MapResponse struct {
	Result ResultCode
	// Lifetime is what was granted, backends.Forever for 2³²−1 seconds; in an
	// error, how long the server expects it to last.
	Lifetime time.Duration
	// Epoch is the time since the server's table was last empty.
	Epoch        time.Duration
	Nonce        Nonce
	Protocol     backends.Protocol
	InternalPort uint16
	// ExternalPort and External are what was granted; in an error, the wish, or
	// what else the server put there: for some, their own address. The zero Addr
	// is written as 0.0.0.0.
	ExternalPort uint16
	External     netip.Addr
	// Options are those that the server did as it was told, and in errors those
	// of the request. Some servers repeat them all regardless.
	Options Options
}

// AppendBinary appends the message to b. It fails with ErrInvalid for options
// that have no form on the wire, and for a message of more than MaxMessage
// bytes.
func (r MapResponse) AppendBinary(b []byte) ([]byte, error) {
	if err := r.Options.check(mapSize, OpMap); err != nil {
		return b, err
	}
	b = appendResponseHeader(b, Version, OpMap|OpResponse, r.Result, r.Lifetime, r.Epoch)
	b = appendMapping(b, r.Nonce, r.Protocol, r.InternalPort, r.ExternalPort, suggestedAddr(r.External, netip.Addr{}))
	return r.Options.append(b), nil
}

// MarshalBinary returns what AppendBinary appends.
func (r MapResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseMapResponse reads the message; options that it does not know or cannot
// read are ignored. A shorter error response is [ParseErrorResponse]'s.
func ParseMapResponse(b []byte) (MapResponse, error) {
	if err := checkResponse(b, mapSize, OpMap); err != nil {
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
		Options:      parseResponseOptions(b[mapSize:], OpMap),
	}, nil
}

// appendMapping appends what follows the header in all messages about
// mappings, whichever their opcode.
func appendMapping(b []byte, nonce Nonce, p backends.Protocol, internal, external uint16, addr netip.Addr) []byte {
	b = append(b, nonce[:]...)
	b = append(b, byte(p), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, internal)
	b = binary.BigEndian.AppendUint16(b, external)
	return appendAddr(b, addr)
}
