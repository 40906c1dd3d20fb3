package pcp

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
)

// ResultError is a refusal by the server. It wraps the error of package
// backends that the code belongs to.
type ResultError struct {
	Op   Opcode // of the request
	Code ResultCode
	// Lifetime is how long the server expects the refusal to last: the same
	// request is not to be repeated in that time (RFC 6887, section 8.3).
	// Common servers send 0 where they mean long.
	Lifetime time.Duration
	// Response is the datagram as it came, with the nonce in it: not for logs.
	Response []byte
	// External is what stood where a success has the external address and port,
	// if anything did: the wish, or the private address of a server that is
	// itself behind a NAT.
	External netip.AddrPort
}

// Error says what was refused and why.
func (e *ResultError) Error() string {
	s := fmt.Sprintf("pcp: %v: %v (result %d)", e.Op, e.Code, uint8(e.Code))
	switch {
	case e.Lifetime == backends.Forever:
		s += ", for ever"
	case e.Lifetime > 0:
		s += fmt.Sprintf(", for %v", e.Lifetime)
	}
	return s
}

// Unwrap returns the error of package backends that the code belongs to.
func (e *ResultError) Unwrap() error { return e.Code.kind() }

// VersionError is the answer of a server that does not speak version 2:
// NAT-PMP (RFC 6886) where it is 0. It wraps backends.ErrUnsupported.
type VersionError struct {
	Version uint8 // that the server speaks
	// Lifetime is how long the server expects this to last, where it said.
	Lifetime time.Duration
}

// Error names the version.
func (e *VersionError) Error() string {
	if e.Version == 0 {
		return "pcp: the gateway speaks NAT-PMP, not PCP"
	}
	return fmt.Sprintf("pcp: the gateway speaks version %d, not PCP version 2", e.Version)
}

// Unwrap returns backends.ErrUnsupported.
func (e *VersionError) Unwrap() error { return backends.ErrUnsupported }

// RequestError is what a server finds wrong with a request. It wraps the error
// of package backends that the code belongs to.
type RequestError struct {
	Code   ResultCode // to answer with
	Reason string
}

// Error says what is wrong.
func (e *RequestError) Error() string { return fmt.Sprintf("pcp: %v: %s", e.Code, e.Reason) }

// Unwrap returns the error of package backends that the code belongs to.
func (e *RequestError) Unwrap() error { return e.Code.kind() }
