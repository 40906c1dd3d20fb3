package natpmp

import (
	"fmt"

	"github.com/natforward/goforward/backends"
)

// ResultCode is the result code of a response (RFC 6886, section 3.5).
type ResultCode uint16

// The result codes of the standard.
const (
	Success            ResultCode = 0
	UnsupportedVersion ResultCode = 1
	NotAuthorized      ResultCode = 2 // refused, or the feature is switched off
	NetworkFailure     ResultCode = 3 // the gateway has no (usable) external address
	OutOfResources     ResultCode = 4
	UnsupportedOpcode  ResultCode = 5
)

// String returns the meaning of the code.
func (c ResultCode) String() string {
	texts := [...]string{
		Success: "success", UnsupportedVersion: "unsupported version", NotAuthorized: "not authorized or refused",
		NetworkFailure: "network failure", OutOfResources: "out of resources", UnsupportedOpcode: "unsupported opcode",
	}
	if int(c) < len(texts) {
		return texts[c]
	}
	return "undefined result"
}

// kind returns the error of package backends for the code. A code that the standard
// does not define ends the request (RFC 6886, section 3.5).
func (c ResultCode) kind() error {
	switch c {
	case Success:
		return nil
	case UnsupportedVersion, UnsupportedOpcode:
		return backends.ErrUnsupported
	case NotAuthorized:
		return backends.ErrNotAuthorized
	case NetworkFailure:
		return backends.ErrNetworkFailure
	case OutOfResources:
		return backends.ErrNoResources
	}
	return backends.ErrMalformed
}

// ResultError is returned if the gateway refuses a request. It wraps the error of
// package backends that corresponds to the code.
type ResultError struct {
	Op       Opcode // of the request
	Code     ResultCode
	Response []byte // the datagram as received
}

// Error returns the operation and the reason for the refusal.
func (e *ResultError) Error() string {
	return fmt.Sprintf("natpmp: %v: %v (result %d)", e.Op, e.Code, uint16(e.Code))
}

// Unwrap returns the error of package backends that corresponds to the code.
func (e *ResultError) Unwrap() error { return e.Code.kind() }

// pcpVersion is the version of PCP (RFC 6887).
const pcpVersion = 2

// VersionError is returned if the gateway supports another version on this port.
// Version 2 is PCP (RFC 6887). It wraps backends.ErrUnsupported.
type VersionError struct {
	Version uint8 // the version that the gateway supports
}

// Error returns a text with the version.
func (e *VersionError) Error() string {
	if e.Version == pcpVersion {
		return "natpmp: the gateway supports PCP, not NAT-PMP"
	}
	return fmt.Sprintf("natpmp: the gateway supports version %d, not NAT-PMP", e.Version)
}

// Unwrap returns backends.ErrUnsupported.
func (e *VersionError) Unwrap() error { return backends.ErrUnsupported }
