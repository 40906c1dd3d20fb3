package pcp

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// AnnounceRequest requests the server's epoch, and changes nothing (RFC 6887,
// section 14.1).
type AnnounceRequest struct {
	// Client is the address from which the request is sent. Required.
	Client netip.Addr
}

// AppendBinary appends the message to b. It fails with ErrInvalid if the client's
// address is missing.
func (r AnnounceRequest) AppendBinary(b []byte) ([]byte, error) {
	if !r.Client.IsValid() {
		return b, fmt.Errorf("pcp: %w: no client address", backends.ErrInvalid)
	}
	return appendRequestHeader(b, OpAnnounce, 0, r.Client), nil
}

// MarshalBinary returns the message. It fails in the same cases as AppendBinary.
func (r AnnounceRequest) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// ParseAnnounceRequest parses the message. It returns the same errors as
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

// AnnounceResponse answers an AnnounceRequest. Servers also announce it to
// 224.0.0.1:5350 and [ff02::1]:5350 (RFC 6887, section 14.1).
type AnnounceResponse struct {
	Result ResultCode
	// Lifetime is 0 in a success. In an error, it is how long the server expects
	// the error to last.
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

// ParseAnnounceResponse parses the message. It ignores options.
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
