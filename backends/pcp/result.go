package pcp

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// ResultCode is the result code of a response (RFC 6887, section 7.4).
type ResultCode uint8

// The result codes of the standards.
const (
	Success               ResultCode = 0
	UnsupportedVersion    ResultCode = 1
	NotAuthorized         ResultCode = 2 // refused, or the mapping has another nonce
	MalformedRequest      ResultCode = 3
	UnsupportedOpcode     ResultCode = 4
	UnsupportedOption     ResultCode = 5
	MalformedOption       ResultCode = 6
	NetworkFailure        ResultCode = 7
	NoResources           ResultCode = 8
	UnsupportedProtocol   ResultCode = 9
	UserExceededQuota     ResultCode = 10
	CannotProvideExternal ResultCode = 11
	AddressMismatch       ResultCode = 12 // the header has another address than the packet
	ExcessiveRemotePeers  ResultCode = 13 // too many filters

	// Authentication, RFC 7652.
	Initiation              ResultCode = 14
	AuthenticationRequired  ResultCode = 15
	AuthenticationFailed    ResultCode = 16
	AuthenticationSucceeded ResultCode = 17
	AuthorizationFailed     ResultCode = 18
	SessionTerminated       ResultCode = 19
	UnknownSessionID        ResultCode = 20
	DowngradeAttackDetected ResultCode = 21
	AuthenticationRequest   ResultCode = 22
	AuthenticationReply     ResultCode = 23

	// The THIRD_PARTY_ID option, RFC 7843.
	ThirdPartyIDUnknown           ResultCode = 24
	ThirdPartyMissingOption       ResultCode = 25
	UnsupportedThirdPartyIDLength ResultCode = 26
)

// resultTexts has the meanings of the codes.
var resultTexts = [...]string{
	Success:                       "success",
	UnsupportedVersion:            "unsupported version",
	NotAuthorized:                 "not authorized or refused",
	MalformedRequest:              "malformed request",
	UnsupportedOpcode:             "unsupported opcode",
	UnsupportedOption:             "unsupported option",
	MalformedOption:               "malformed option",
	NetworkFailure:                "network failure",
	NoResources:                   "out of resources",
	UnsupportedProtocol:           "unsupported protocol",
	UserExceededQuota:             "quota exceeded",
	CannotProvideExternal:         "cannot provide the external port",
	AddressMismatch:               "address mismatch: another NAT is between this host and the server",
	ExcessiveRemotePeers:          "too many filters",
	Initiation:                    "initiation",
	AuthenticationRequired:        "authentication required",
	AuthenticationFailed:          "authentication failed",
	AuthenticationSucceeded:       "authentication succeeded",
	AuthorizationFailed:           "authorization failed",
	SessionTerminated:             "session terminated",
	UnknownSessionID:              "unknown session",
	DowngradeAttackDetected:       "downgrade attack detected",
	AuthenticationRequest:         "authentication request",
	AuthenticationReply:           "authentication reply",
	ThirdPartyIDUnknown:           "third party id unknown",
	ThirdPartyMissingOption:       "third party option missing",
	UnsupportedThirdPartyIDLength: "unsupported third party id length",
}

// String returns the meaning of the code.
func (c ResultCode) String() string {
	if int(c) < len(resultTexts) {
		return resultTexts[c]
	}
	return "undefined result"
}

// kind returns the error of package backends for the code.
func (c ResultCode) kind() error {
	switch c {
	case Success:
		return nil
	case NotAuthorized, AuthenticationRequired, AuthorizationFailed:
		return backends.ErrNotAuthorized
	case NetworkFailure:
		return backends.ErrNetworkFailure
	case NoResources, UserExceededQuota, ExcessiveRemotePeers:
		return backends.ErrNoResources
	case CannotProvideExternal:
		return backends.ErrConflict
	case AddressMismatch:
		return backends.ErrPrivateWAN
	case UnsupportedVersion, UnsupportedOpcode, UnsupportedOption, UnsupportedProtocol,
		ThirdPartyIDUnknown, ThirdPartyMissingOption, UnsupportedThirdPartyIDLength:
		return backends.ErrUnsupported
	}
	return backends.ErrMalformed
}

// ResultError is returned if the server refuses a request. It wraps the error of
// package backends that corresponds to the code.
type ResultError struct {
	Op   Opcode // of the request
	Code ResultCode
	// Lifetime is how long the server expects the refusal to last. The client must
	// not repeat the same request during that time (RFC 6887, section 8.3). Common
	// servers send 0 even if the refusal is permanent.
	Lifetime time.Duration
	// Response is the datagram as received. It contains the nonce, so do not log
	// it.
	Response []byte
	// External is the external address and port in the response, if it has any. It
	// is the suggested address, or the private address of a server that is itself
	// behind a NAT.
	External netip.AddrPort
}

// Error returns the operation and the reason for the refusal.
func (e *ResultError) Error() string {
	s := fmt.Sprintf("pcp: %v: %v (result %d)", e.Op, e.Code, uint8(e.Code))
	switch {
	case e.Lifetime == backends.Forever:
		s += ", permanently"
	case e.Lifetime > 0:
		s += fmt.Sprintf(", for the next %v", e.Lifetime)
	}
	return s
}

// Unwrap returns the error of package backends that corresponds to the code.
func (e *ResultError) Unwrap() error { return e.Code.kind() }

// VersionError is returned if the server does not support version 2. Version 0 is
// NAT-PMP (RFC 6886). It wraps backends.ErrUnsupported.
type VersionError struct {
	Version uint8 // the version that the server supports
	// Lifetime is how long the server expects this to last, or 0 if the response
	// has no lifetime.
	Lifetime time.Duration
}

// Error returns a text with the version.
func (e *VersionError) Error() string {
	if e.Version == 0 {
		return "pcp: the gateway supports NAT-PMP, not PCP"
	}
	return fmt.Sprintf("pcp: the gateway supports version %d, not PCP version 2", e.Version)
}

// Unwrap returns backends.ErrUnsupported.
func (e *VersionError) Unwrap() error { return backends.ErrUnsupported }

// RequestError is returned by the parsers if a server has to refuse a request. It
// wraps the error of package backends that corresponds to the code.
type RequestError struct {
	Code   ResultCode // for the response
	Reason string
}

// Error returns the code and the reason.
func (e *RequestError) Error() string { return fmt.Sprintf("pcp: %v: %s", e.Code, e.Reason) }

// Unwrap returns the error of package backends that corresponds to the code.
func (e *RequestError) Unwrap() error { return e.Code.kind() }
