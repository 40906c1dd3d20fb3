package quirks

// NATPMP has the quirks of the NAT-PMP server. The zero value follows RFC 6886.
type NATPMP struct {
	// VersionError is the form of the response to other versions, if the gateway does
	// not support PCP.
	VersionError VersionErrorForm
	// ShortOpcodeError responds to an unknown opcode with eight bytes that include the
	// epoch, as miniupnpd does. The standard response is a copy of the request (RFC
	// 6886, section 3.5).
	ShortOpcodeError bool
	// RefusePrivate responds with result 3 while the external address is private or
	// carrier-grade, as miniupnpd does. By default, such an address is reported. Without
	// an external address (0.0.0.0), the result is always 3.
	RefusePrivate bool
	// AnyDeletePort accepts a deletion that names an external port, which the standard
	// forbids (RFC 6886, section 3.4). By default, such a deletion is refused with
	// result 2.
	AnyDeletePort bool
	// EchoErrors copies the requested port and lifetime into error responses. In the
	// standard, these fields are zero.
	EchoErrors bool
	// LowByte keeps only the low eight bits of the ports in responses.
	LowByte bool
	// EpochStuck always reports 0 as the epoch.
	EpochStuck bool
	// EpochBack simulates two devices that respond in turn. The epoch of the second is
	// 1000 s less than the epoch of the first.
	EpochBack bool
	// ExternalZero reports 0.0.0.0 as the external address, with result success.
	ExternalZero bool
	// MultiplePorts adds a mapping if a request names another external port for an
	// internal port that is already mapped, as miniupnpd does. By default, the response
	// has the external port already assigned (RFC 6886, section 3.3).
	MultiplePorts bool
	// VPN behaves like the gateways of VPN providers. Internal port 0 is accepted. A
	// client has one port, which is the same inside and outside and for both protocols,
	// regardless of the port that it requested. Responses have internal port 0 and a
	// lifetime of 60 s.
	VPN bool
	// PCPOnly refuses version 0 as a gateway does that supports only PCP: with 24 bytes
	// of version 2 and result 1. It does so even if the gateway does not support PCP.
	PCPOnly bool
	// PCPOnlyTruncated is like PCPOnly, but with the short responses of some routers: 2
	// bytes, or 12 bytes to a mapping request.
	PCPOnlyTruncated bool
	// OwnPort writes the external port into the field of the internal port in responses
	// to granted mapping requests.
	OwnPort bool
	// ShortErrors ends the responses to refused mapping requests after eight bytes.
	ShortErrors bool
}

// VersionErrorForm is the form of a NAT-PMP gateway's response to an unknown version.
type VersionErrorForm uint8

// The forms of a response to an unknown version.
const (
	// VersionErrorRFC sends eight bytes with opcode 0 (RFC 6886, section 3.5).
	VersionErrorRFC VersionErrorForm = iota
	// VersionErrorOpcode sends eight bytes with the opcode of the request plus 128.
	VersionErrorOpcode
	// VersionErrorSilent sends no response.
	VersionErrorSilent
)
