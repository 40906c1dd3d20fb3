package pcp

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// AnnounceRequest asks the server for its epoch, and changes nothing
// (RFC 6887, section 14.1).
type AnnounceRequest struct {
	// Client is the address that the request is sent from. Required.
	Client netip.Addr
}

// AppendBinary appends the message to b. It fails with ErrInvalid without a
// client's address.
func (r AnnounceRequest) AppendBinary(b []byte) ([]byte, error) {
	if !r.Client.IsValid() {
		return b, fmt.Errorf("pcp: %w: no client address", backends.ErrInvalid)
	}
	return appendRequestHeader(b, OpAnnounce, 0, r.Client), nil
}

// MarshalBinary returns what AppendBinary appends.
func (r AnnounceRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseAnnounceRequest reads the message. Its errors are those of
// [ParseMapRequest].
func ParseAnnounceRequest(b []byte) (AnnounceRequest, error) {
	if err := checkRequest(b, headerSize, OpAnnounce); err != nil {
		return AnnounceRequest{}, err
	}
	if _, err := parseRequestOptions(b[headerSize:], OpAnnounce); err != nil {
		return AnnounceRequest{}, err
	}
	return AnnounceRequest{Client: parseAddr(b[8:])}, nil
}

// AnnounceResponse answers an AnnounceRequest. It is also what a server
// announces to 224.0.0.1:5350 and [ff02::1]:5350 (RFC 6887, section 14.1).
type AnnounceResponse struct {
	Result ResultCode
	// Lifetime is 0 in successes; in an error, how long the server expects it
	// to last.
	Lifetime time.Duration
	// Epoch is the time since the server's table was last empty.
	Epoch time.Duration
}

// AppendBinary appends the message to b. It never fails.
func (r AnnounceResponse) AppendBinary(b []byte) ([]byte, error) {
	return appendResponseHeader(b, Version, OpAnnounce|OpResponse, r.Result, r.Lifetime, r.Epoch), nil
}

// MarshalBinary returns the message. It never fails.
func (r AnnounceResponse) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseAnnounceResponse reads the message; options are ignored.
func ParseAnnounceResponse(b []byte) (AnnounceResponse, error) {
	if err := checkResponse(b, headerSize, OpAnnounce); err != nil {
		return AnnounceResponse{}, err
	}
	return AnnounceResponse{
		Result:   ResultCode(b[3]),
		Lifetime: duration(b[4:]),
		Epoch:    epochDuration(b[8:]),
	}, nil
}
