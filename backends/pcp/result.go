package pcp

import "github.com/natforward/goforward/backends"

// ResultCode is a response's result (RFC 6887, section 7.4).
type ResultCode uint8

// The results that the standards define.
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
	AddressMismatch       ResultCode = 12 // the packet came from another address than its header says
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

	// Third parties with names of their own, RFC 7843.
	ThirdPartyIDUnknown           ResultCode = 24
	ThirdPartyMissingOption       ResultCode = 25
	UnsupportedThirdPartyIDLength ResultCode = 26
)

// resultTexts are the meanings of the codes.
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
	AddressMismatch:               "address mismatch: another NAT stands between this host and the server",
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

// String returns the code's meaning.
func (c ResultCode) String() string {
	if int(c) < len(resultTexts) {
		return resultTexts[c]
	}
	return "undefined result"
}

// kind is the error of package backends that the code belongs to.
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
