package quirks

// NATPMP has the quirks of the NAT-PMP server. The zero value follows RFC 6886.
type NATPMP struct {
	// VersionError is the answer to other versions, if the gateway does not speak PCP.
	VersionError VersionErrorForm
	// ShortOpcodeError answers an unknown opcode with eight bytes and the epoch,
	// as miniupnpd does, rather than with the request itself (RFC 6886, section 3.5).
	ShortOpcodeError bool
	// RefusePrivate answers with result 3 while the external address is private
	// or carrier-grade, as miniupnpd does. By default the address is told.
	// Without any address (0.0.0.0) the result is always 3.
	RefusePrivate bool
	// AnyDeletePort accepts a deletion that names an external port, which the
	// standard forbids (RFC 6886, section 3.4). By default it is refused with result 2.
	AnyDeletePort bool
	// EchoErrors echoes the wished port and lifetime in errors; the standard says
	// zeros.
	EchoErrors bool
	// LowByte keeps only the low eight bits of the ports in answers.
	LowByte bool
	// EpochStuck tells 0 as the epoch, always.
	EpochStuck bool
	// EpochBack lets two clones answer in turn, the second with an epoch 1000 s
	// behind the first's.
	EpochBack bool
	// ExternalZero tells 0.0.0.0 as the external address, with success.
	ExternalZero bool
	// MultiplePorts makes a request for an internal port that is mapped already
	// add a mapping if it names another external port, as miniupnpd does. By
	// default it gets the port already assigned (RFC 6886, section 3.3).
	MultiplePorts bool
	// VPN behaves as the gateways of VPN providers do: internal port 0 is
	// welcome, a client has one port, the same inside and outside and for both
	// protocols, whatever it wished; answers have internal port 0 and 60 s.
	VPN bool
	// PCPOnly refuses version 0 as a gateway does that speaks only PCP: with 24 bytes
	// of version 2 and result 1. It does that even if the gateway does not speak PCP.
	PCPOnly bool
	// PCPOnlyTruncated is PCPOnly with the short answers of some routers: 2
	// bytes, or 12 to a mapping request.
	PCPOnlyTruncated bool
}

// VersionErrorForm is how a NAT-PMP gateway answers an unknown version.
type VersionErrorForm uint8

// The forms of an answer to an unknown version.
const (
	// VersionErrorRFC: eight bytes with opcode 0 (RFC 6886, section 3.5).
	VersionErrorRFC VersionErrorForm = iota
	// VersionErrorOpcode: eight bytes with the request's opcode plus 128.
	VersionErrorOpcode
	// VersionErrorSilent: none.
	VersionErrorSilent
)
