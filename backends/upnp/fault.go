package upnp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/errno"
)

// FaultCode is the errorCode of a UPnP fault.
type FaultCode int

// The codes that this package interprets, from UPnP Device Architecture
// (401–605), WANIPConnection:1 and :2, WANPPPConnection:1 (606, 713–733) and
// WANIPv6FirewallControl:1 (606, 701–709). The codes from 734, from 800 to 899
// and below 0 are vendor-specific.
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

// faults contains the meaning of each code and the corresponding error of
// package backends.
var faults = map[FaultCode]struct {
	text string
	kind error
}{
	0:                                 {"no code", backends.ErrMalformed}, // UPnP has no fault without a code
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

// String returns the meaning of the code.
func (c FaultCode) String() string { return cmp.Or(faults[c].text, "vendor's error") }

// isUnknown reports whether the code is missing or vendor-specific. It does not show
// the reason.
func (c FaultCode) isUnknown() bool { return c == 0 || faults[c].text == "" }

// kind returns the error of package backends that corresponds to the code. Unknown
// codes are vendor-specific; they are treated as ActionFailed.
func (c FaultCode) kind() error { return cmp.Or(faults[c].kind, backends.ErrNoResources) }

// Fault is a refusal by the device. It wraps the error of package backends that
// corresponds to the code, or to the cause if the circumstances show another one.
type Fault struct {
	Action string    // the action that the device refused
	Code   FaultCode // 0 if the response contains no code
	// Description is the text of the device, printable and at most 256 bytes
	// long.
	Description string
	Status      int // the HTTP status of the response, usually 500

	cause  error // the error of package backends, if the code does not show it
	reason string
}

// because returns the fault with a cause that the circumstances show.
func (f Fault) because(cause error, reason string) error {
	f.cause, f.reason = cause, reason
	return &f
}

// Error returns the action, the meaning of the code, the code, and the text of
// the device.
func (f *Fault) Error() string {
	text := fmt.Sprintf("upnp: %s: %v (error %d)", f.Action, f.Code, int(f.Code))
	if f.Description != "" {
		text = fmt.Sprintf("%s: %q)", strings.TrimSuffix(text, ")"), f.Description)
	}
	if f.cause != nil {
		text += fmt.Sprintf(": %v: %s", f.cause, f.reason)
	}
	return text
}

// Unwrap returns the error of package backends that corresponds to the code, or to
// the circumstances if they show the cause.
func (f *Fault) Unwrap() error { return cmp.Or(f.cause, f.Code.kind()) }

// HTTPError is an HTTP error status without a UPnP fault. It wraps
// backends.ErrNotAuthorized if the device requires credentials (401, 403),
// otherwise backends.ErrMalformed.
type HTTPError struct {
	Status int
}

// Error returns the status and its text.
func (e *HTTPError) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("HTTP status %d (%s)", e.Status, statusTexts[e.Status]), " ()")
}

// Unwrap returns the error of package backends that corresponds to the status.
func (e *HTTPError) Unwrap() error {
	if e.Status == statusUnauthorized || e.Status == statusForbidden {
		return backends.ErrNotAuthorized
	}
	return backends.ErrMalformed
}

// Moved reports whether err shows that the device is no longer at its address:
// either the connection was refused, or the path is unknown (HTTP 404). Devices
// change their port and path when they restart, so the caller should then search
// for the device again.
func Moved(err error) bool {
	var status *HTTPError
	return errno.IsRefused(err) || errors.As(err, &status) && status.Status == statusNotFound
}

// isFault reports whether err is a fault with one of the codes.
func isFault(err error, codes ...FaultCode) bool {
	var fault *Fault
	return errors.As(err, &fault) && slices.Contains(codes, fault.Code)
}

// isNotFound reports whether err is a fault with a code for a missing entry.
func isNotFound(err error) bool {
	return isFault(err, NoSuchEntry, SpecifiedArrayIndexInvalid, NoSuchEntryInArray, PortMappingNotFound)
}

// transportError returns nil if err is a fault, a refusal, or means a malformed response,
// because the device has responded then. It returns any other error unchanged.
func transportError(err error) error {
	var fault *Fault
	if errors.As(err, &fault) || errors.Is(err, backends.ErrMalformed) || errors.Is(err, backends.ErrNotAuthorized) {
		return nil
	}
	return err
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{backends.ErrMalformed}, args...)...)
}

// The HTTP statuses that have a meaning for this package.
const (
	statusOK               = 200
	statusBadRequest       = 400
	statusUnauthorized     = 401
	statusForbidden        = 403
	statusNotFound         = 404
	statusMethodNotAllowed = 405
	statusNotImplemented   = 501
)

// statusTexts are the names of the HTTP statuses of redirections and errors (RFC 9110, section 15,
// and the registry of IANA). Package net/http has them too, but importing it doubles the size of a
// program, and the time it needs to start.
var statusTexts = map[int]string{
	300: "Multiple Choices",
	301: "Moved Permanently",
	302: "Found",
	303: "See Other",
	304: "Not Modified",
	305: "Use Proxy",
	307: "Temporary Redirect",
	308: "Permanent Redirect",
	400: "Bad Request",
	401: "Unauthorized",
	402: "Payment Required",
	403: "Forbidden",
	404: "Not Found",
	405: "Method Not Allowed",
	406: "Not Acceptable",
	407: "Proxy Authentication Required",
	408: "Request Timeout",
	409: "Conflict",
	410: "Gone",
	411: "Length Required",
	412: "Precondition Failed",
	413: "Request Entity Too Large",
	414: "Request URI Too Long",
	415: "Unsupported Media Type",
	416: "Requested Range Not Satisfiable",
	417: "Expectation Failed",
	418: "I'm a teapot",
	421: "Misdirected Request",
	422: "Unprocessable Entity",
	423: "Locked",
	424: "Failed Dependency",
	425: "Too Early",
	426: "Upgrade Required",
	428: "Precondition Required",
	429: "Too Many Requests",
	431: "Request Header Fields Too Large",
	451: "Unavailable For Legal Reasons",
	500: "Internal Server Error",
	501: "Not Implemented",
	502: "Bad Gateway",
	503: "Service Unavailable",
	504: "Gateway Timeout",
	505: "HTTP Version Not Supported",
	506: "Variant Also Negotiates",
	507: "Insufficient Storage",
	508: "Loop Detected",
	510: "Not Extended",
	511: "Network Authentication Required",
}
