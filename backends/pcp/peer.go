package pcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// peerSize is the size of peer messages without options (RFC 6887, section 12.1).
const peerSize = mapSize + 20

// PeerRequest creates or renews a mapping to one remote peer, as an outgoing packet
// would (RFC 6887, section 12.1). The fields have the same meaning as in
// [MapRequest].
type PeerRequest struct {
	Client       netip.Addr
	Lifetime     time.Duration
	Nonce        Nonce
	Protocol     backends.Protocol
	InternalPort uint16
	ExternalPort uint16
	External     netip.Addr
	// Remote is the peer. The address is required.
	Remote netip.AddrPort
	// Options has neither PreferFailure nor Filters.
	Options Options
}

// AppendBinary appends the message to b. It fails with ErrInvalid in the same cases
// as [MapRequest.AppendBinary], and if the message has no peer.
func (r PeerRequest) AppendBinary(b []byte) ([]byte, error) {
	if err := checkAppend(r.Client, &r.Options, peerSize, OpPeer, r.validate()); err != nil {
		return b, err
	}
	if !r.Remote.Addr().IsValid() {
		return b, errNoPeer()
	}
	b = appendRequestHeader(b, OpPeer, r.Lifetime, r.Client)
	b = appendMapping(b, r.Nonce, r.Protocol, r.InternalPort, r.ExternalPort, suggestedAddr(r.External, r.Client))
	return r.Options.append(appendPeer(b, r.Remote)), nil
}

// MarshalBinary returns the message. It fails in the same cases as AppendBinary.
func (r PeerRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParsePeerRequest parses the message. It returns the same errors as
// [ParseMapRequest].
func ParsePeerRequest(b []byte) (PeerRequest, error) {
	m, err := parseRequest(b, peerSize, OpPeer)
	if err != nil {
		return PeerRequest{}, err
	}
	return PeerRequest{
		Client: m.Client, Lifetime: m.Lifetime, Nonce: m.Nonce, Protocol: m.Protocol, InternalPort: m.InternalPort,
		ExternalPort: m.ExternalPort, External: m.External, Remote: parsePeer(b[mapSize:]), Options: m.Options,
	}, nil
}

// validate validates the request like a MapRequest with the same fields.
func (r *PeerRequest) validate() *RequestError {
	m := MapRequest{Client: r.Client, Protocol: r.Protocol, InternalPort: r.InternalPort}
	m.Options.ThirdParty = r.Options.ThirdParty
	return m.validate()
}

// PeerResponse answers a PeerRequest, or reports a change of its mapping (RFC 6887,
// sections 12.1 and 14.2). The fields have the same meaning as in [MapResponse].
type PeerResponse struct {
	Result       ResultCode
	Lifetime     time.Duration
	Epoch        time.Duration
	Nonce        Nonce
	Protocol     backends.Protocol
	InternalPort uint16
	ExternalPort uint16
	External     netip.Addr
	// Remote is the peer. The address is required.
	Remote  netip.AddrPort
	Options Options
}

// AppendBinary appends the message to b. It fails with ErrInvalid in the same cases
// as [MapResponse.AppendBinary], and if the message has no peer.
func (r PeerResponse) AppendBinary(b []byte) ([]byte, error) {
	if err := r.Options.check(peerSize, OpPeer); err != nil {
		return b, err
	}
	if !r.Remote.Addr().IsValid() {
		return b, errNoPeer()
	}
	b = appendResponseHeader(b, Version, OpPeer|OpResponse, r.Result, r.Lifetime, r.Epoch)
	b = appendMapping(b, r.Nonce, r.Protocol, r.InternalPort, r.ExternalPort, suggestedAddr(r.External, netip.Addr{}))
	return r.Options.append(appendPeer(b, r.Remote)), nil
}

// MarshalBinary returns the message. It fails in the same cases as AppendBinary.
func (r PeerResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParsePeerResponse parses the message. It ignores unknown and malformed options.
// For a shorter error response use [ParseErrorResponse].
func ParsePeerResponse(b []byte) (PeerResponse, error) {
	m, err := parseResponse(b, peerSize, OpPeer)
	if err != nil {
		return PeerResponse{}, err
	}
	return PeerResponse{
		Result: m.Result, Lifetime: m.Lifetime, Epoch: m.Epoch, Nonce: m.Nonce, Protocol: m.Protocol, InternalPort: m.InternalPort,
		ExternalPort: m.ExternalPort, External: m.External, Remote: parsePeer(b[mapSize:]), Options: m.Options,
	}, nil
}

// appendPeer appends the port and address of the peer, with the reserved field
// between them.
func appendPeer(b []byte, remote netip.AddrPort) []byte {
	b = binary.BigEndian.AppendUint16(b, remote.Port())
	return appendAddr(append(b, 0, 0), remote.Addr())
}

// parsePeer parses the port and address of the peer. It is the inverse of
// appendPeer.
func parsePeer(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(parseAddr(b[4:]), binary.BigEndian.Uint16(b))
}

func errNoPeer() error { return fmt.Errorf("pcp: %w: no remote address", backends.ErrInvalid) }
