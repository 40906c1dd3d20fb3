package upnp

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// FaultCode is the errorCode of a UPnP fault.
type FaultCode int

// The codes with a meaning here: UPnP Device Architecture (401–605),
// WANIPConnection:1 and :2, WANPPPConnection:1 (606, 713–733) and
// WANIPv6FirewallControl:1 (606, 701–709). 734 and above, 800–899 and negative
// ones are the vendor's.
const (
	InvalidAction                     FaultCode = 401
	InvalidArgs                       FaultCode = 402
	ActionFailed                      FaultCode = 501
	ArgumentValueInvalid              FaultCode = 600
	ArgumentValueOutOfRange           FaultCode = 601
	OptionalActionNotImplemented      FaultCode = 602
	OutOfMemory                       FaultCode = 603
	HumanInterventionRequired         FaultCode = 604
	StringArgumentTooLong             FaultCode = 605
	ActionNotAuthorized               FaultCode = 606
	PinholeSpaceExhausted             FaultCode = 701
	FirewallDisabled                  FaultCode = 702
	InboundPinholeNotAllowed          FaultCode = 703
	NoSuchEntry                       FaultCode = 704
	ProtocolNotSupported              FaultCode = 705
	InternalPortWildcardingNotAllowed FaultCode = 706
	ProtocolWildcardingNotAllowed     FaultCode = 707
	SourceWildcardNotPermitted        FaultCode = 708
	NoTrafficReceived                 FaultCode = 709
	SpecifiedArrayIndexInvalid        FaultCode = 713
	NoSuchEntryInArray                FaultCode = 714
	WildCardNotPermittedInSrcIP       FaultCode = 715
	WildCardNotPermittedInExtPort     FaultCode = 716
	ConflictInMappingEntry            FaultCode = 718
	SamePortValuesRequired            FaultCode = 724
	OnlyPermanentLeasesSupported      FaultCode = 725
	RemoteHostOnlySupportsWildcard    FaultCode = 726
	ExternalPortOnlySupportsWildcard  FaultCode = 727
	NoPortMapsAvailable               FaultCode = 728
	ConflictWithOtherMechanisms       FaultCode = 729
	PortMappingNotFound               FaultCode = 730
	ReadOnly                          FaultCode = 731
	WildCardNotPermittedInIntPort     FaultCode = 732
	InconsistentParameters            FaultCode = 733
)

// faults says of each code what it means and which error of package backends
// it belongs to.
var faults = map[FaultCode]struct {
	text string
	kind error
}{
	InvalidAction:                     {"invalid action", backends.ErrUnsupported},
	InvalidArgs:                       {"invalid arguments", backends.ErrUnsupported},
	ActionFailed:                      {"action failed", backends.ErrNoResources},
	ArgumentValueInvalid:              {"argument value invalid", backends.ErrUnsupported},
	ArgumentValueOutOfRange:           {"argument value out of range", backends.ErrUnsupported},
	OptionalActionNotImplemented:      {"optional action not implemented", backends.ErrUnsupported},
	OutOfMemory:                       {"out of memory", backends.ErrNoResources},
	HumanInterventionRequired:         {"human intervention required", backends.ErrNotAuthorized},
	StringArgumentTooLong:             {"string argument too long", backends.ErrUnsupported},
	ActionNotAuthorized:               {"action not authorized", backends.ErrNotAuthorized},
	PinholeSpaceExhausted:             {"pinhole space exhausted", backends.ErrNoResources},
	FirewallDisabled:                  {"firewall disabled", backends.ErrUnsupported},
	InboundPinholeNotAllowed:          {"inbound pinholes not allowed", backends.ErrNotAuthorized},
	NoSuchEntry:                       {"no such entry", backends.ErrInvalid},
	ProtocolNotSupported:              {"protocol not supported", backends.ErrUnsupported},
	InternalPortWildcardingNotAllowed: {"internal port must be given", backends.ErrUnsupported},
	ProtocolWildcardingNotAllowed:     {"protocol must be given", backends.ErrUnsupported},
	SourceWildcardNotPermitted:        {"source address must be given", backends.ErrUnsupported},
	NoTrafficReceived:                 {"no traffic received", backends.ErrUnsupported},
	SpecifiedArrayIndexInvalid:        {"no entry at that index", backends.ErrInvalid},
	NoSuchEntryInArray:                {"no such entry", backends.ErrInvalid},
	WildCardNotPermittedInSrcIP:       {"remote host must be given", backends.ErrUnsupported},
	WildCardNotPermittedInExtPort:     {"external port must be given", backends.ErrUnsupported},
	ConflictInMappingEntry:            {"the entry conflicts with another", backends.ErrConflict},
	SamePortValuesRequired:            {"internal and external port must be the same", backends.ErrUnsupported},
	OnlyPermanentLeasesSupported:      {"only permanent leases supported", backends.ErrUnsupported},
	RemoteHostOnlySupportsWildcard:    {"remote host must be a wildcard", backends.ErrUnsupported},
	ExternalPortOnlySupportsWildcard:  {"external port must be a wildcard", backends.ErrUnsupported},
	NoPortMapsAvailable:               {"no port maps available", backends.ErrNoResources},
	ConflictWithOtherMechanisms:       {"the port is used by another mechanism", backends.ErrConflict},
	PortMappingNotFound:               {"port mapping not found", backends.ErrInvalid},
	ReadOnly:                          {"read only", backends.ErrNotAuthorized},
	WildCardNotPermittedInIntPort:     {"internal port must be given", backends.ErrUnsupported},
	InconsistentParameters:            {"inconsistent parameters", backends.ErrUnsupported},
}

// String returns the code's meaning.
func (c FaultCode) String() string {
	if f, ok := faults[c]; ok {
		return f.text
	}
	if c == 0 {
		return "no code"
	}
	return "vendor's error"
}

// kind is the error of package backends that the code belongs to. A fault
// without a code is none that UPnP has; any unknown code is the vendor's word
// for "failed".
func (c FaultCode) kind() error {
	if f, ok := faults[c]; ok {
		return f.kind
	}
	if c == 0 {
		return backends.ErrMalformed
	}
	return backends.ErrNoResources
}

// Fault is a refusal by the device. It wraps the error of package backends
// that the code belongs to.
type Fault struct {
	Action string    // the action that was refused
	Code   FaultCode // 0: the device gave none
	// Description is the device's own text, printable and at most 256 bytes.
	Description string
	Status      int // the HTTP status that it came with, usually 500
}

// Error says what was refused and why, in our words and the device's.
func (f *Fault) Error() string {
	if f.Description == "" {
		return fmt.Sprintf("upnp: %s: %v (error %d)", f.Action, f.Code, int(f.Code))
	}
	return fmt.Sprintf("upnp: %s: %v (error %d: %q)", f.Action, f.Code, int(f.Code), f.Description)
}

// Unwrap returns the error of package backends that the code belongs to.
func (f *Fault) Unwrap() error { return f.Code.kind() }

// judged is a fault whose meaning the circumstances tell better than its code.
type reclassifiedFault struct {
	fault  *Fault
	kind   error // of package backends
	reason string
}

func (j *reclassifiedFault) Error() string {
	return fmt.Sprintf("%v: %v: %s", j.fault, j.kind, j.reason)
}
func (j *reclassifiedFault) Unwrap() error { return j.kind }

// As finds the fault, but not what its code belongs to.
func (j *reclassifiedFault) As(target any) bool {
	f, ok := target.(**Fault)
	if ok {
		*f = j.fault
	}
	return ok
}

// HTTPError is an HTTP status that no UPnP fault explains. It wraps
// backends.ErrNotAuthorized where the device wants credentials (401, 403), else
// backends.ErrMalformed.
type HTTPError struct {
	Status int
}

// Error names the status.
func (e *HTTPError) Error() string {
	if text := http.StatusText(e.Status); text != "" {
		return fmt.Sprintf("HTTP status %d (%s)", e.Status, text)
	}
	return fmt.Sprintf("HTTP status %d", e.Status)
}

// Unwrap returns the error of package backends that the status belongs to.
func (e *HTTPError) Unwrap() error {
	if e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden {
		return backends.ErrNotAuthorized
	}
	return backends.ErrMalformed
}

// Moved reports whether the error says that nothing is at the address any
// more: the connection was refused, or the path is unknown there (HTTP 404).
// Devices change port and path when they restart, so look for it again.
func Moved(err error) bool {
	var status *HTTPError
	return errno.IsRefused(err) || errors.As(err, &status) && status.Status == http.StatusNotFound
}

func isFault(err error, code FaultCode) bool {
	var fault *Fault
	return errors.As(err, &fault) && fault.Code == code
}

// absent reports whether a device says for certain that there is no such entry.
func isNotFound(err error) bool {
	var fault *Fault
	if !errors.As(err, &fault) {
		return false
	}
	return fault.Code == NoSuchEntryInArray || fault.Code == NoSuchEntry || fault.Code == PortMappingNotFound
}

// unlessAnswered passes on what keeps a service from being asked at all.
func transportError(err error) error {
	var fault *Fault
	if errors.As(err, &fault) || errors.Is(err, backends.ErrMalformed) {
		return nil
	}
	return err
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{backends.ErrMalformed}, args...)...)
}
