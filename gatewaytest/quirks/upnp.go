package quirks

import (
	"net/netip"
	"time"
)

// UPnP has the options and quirks of the Internet Gateway Device. The zero
// value is a well-behaved IGD:2 (UPnP Device Architecture 1.1; WANIPConnection:2;
// WANIPv6FirewallControl:1). All quirks can be combined. Its functions are called
// without a lock held, possibly at once.
type UPnP struct {
	// Version is that of the devices and services, 1 or 2. Zero is 2. Version 1 has
	// no AddAnyPortMapping, GetListOfPortMappings, DeletePortMappingRange nor the
	// IPv6 firewall service; a lease of 0 is permanent there, and the maximum of
	// a week in version 2.
	Version int
	// UDN is the root device's, with "uuid:". Empty: a random one.
	UDN string
	// AnyClient lets clients map for other hosts, and delete what other hosts
	// have. By default an InternalClient other than the sender gets fault 606, or
	// 718 in version 1.
	AnyClient bool
	// MovePort has each Restart serve description and control on another port;
	// the old one refuses.
	MovePort bool

	// Search has the quirks of SSDP, Description those of the device description,
	// Wire of the HTTP server, XML of all documents and FaultForm of SOAP faults.
	Search      Search
	Description Description
	Wire        Wire
	XML         XML
	FaultForm   FaultForm
	// Demands are what requests have to be like.
	Demands Demands
	// Leases, Rules, Listing, Status and Firewall have the quirks of the actions.
	Leases   Leases
	Rules    Rules
	Listing  Listing
	Status   Status
	Firewall Firewall
}

// Demands are what requests have to be like.
type Demands struct {
	// ExactSOAPAction wants the header to be written SOAPAction or SOAPACTION;
	// else HTTP status 501.
	ExactSOAPAction bool
	// QuotedSOAPAction wants its value in quotes; else HTTP status 400.
	QuotedSOAPAction bool
	// SOAPActionNotLast takes the body into the last header, if that is SOAPAction:
	// fault 401.
	SOAPActionNotLast bool
	// ContentType is the only one taken, letter by letter; else HTTP status 415.
	// Empty: any.
	ContentType string
	// UserAgent is what that header has to contain; else HTTP status 400. Empty: anything.
	UserAgent string
	// LiteralHost wants an IP address as the Host; else HTTP status 400.
	LiteralHost bool
	// GetHTTP10 answers GET in HTTP/1.1 with status 501.
	GetHTTP10 bool
	// Compact refuses white space between elements with fault 402.
	Compact bool
	// RemoteHost refuses a mapping without the element with fault 402, and
	// NoZeroRemoteHost one with 0.0.0.0 in it. By default both are anybody.
	RemoteHost, NoZeroRemoteHost bool
	// UpperProtocol refuses "tcp" and "udp" with fault 402.
	UpperProtocol bool
	// BlankDescription is the fault for a description that is empty or white space,
	// OddDescription for one with other than letters, digits, space and "-_.", and
	// LongDescription for one above MaxDescription bytes, such as 402, 501 or
	// 605. Zero: they are taken.
	BlankDescription, OddDescription, LongDescription int
	// MaxDescription is the length in bytes that LongDescription is about.
	MaxDescription int
}

// Leases has the quirks of lease durations.
type Leases struct {
	// PermanentOnly is the fault for every lease but 0: 725, or 402 of some
	// routers. Zero: all leases are welcome.
	PermanentOnly int
	// NoPermanent is the fault for lease 0, such as 402. Zero: see [UPnP.Version].
	NoPermanent int
	// NoLong is the fault for leases above a week, such as 402. By default
	// version 2 cuts them down to a week, and version 1 grants them.
	NoLong int
	// Max cuts leases down, permanent ones too. Zero: not. It works beside
	// gatewaytest.Config.MaxLifetime, on mappings of UPnP alone.
	Max time.Duration
	// Reported is the lease that all listings tell. Zero: what is left of it.
	Reported time.Duration
	// ReportedZero tells 0 as the lease in all listings.
	ReportedZero bool
	// NoRefresh accepts the same mapping again and lets it expire when it would
	// have anyway.
	NoRefresh bool
}

// Rules has the quirks of what is mapped and what is refused.
type Rules struct {
	// NoReAdd is the fault for a mapping that the same client has already, such as
	// 718. Zero: it is overwritten, also with another internal port.
	NoReAdd int
	// OnePort refuses a second external port for an internal endpoint with fault 718.
	OnePort bool
	// OtherMechanism is the fault for a port held by something else than UPnP, such
	// as 729. Zero is 718.
	OtherMechanism int
	// SamePort refuses an external port that is not the internal one with fault 724.
	SamePort bool
	// LowPorts is the fault for external ports, or internal ones of pinholes,
	// below 1024: 606, or 718 of some routers. Zero: they are ports like others.
	LowPorts int
	// SourceNeeded refuses to serve everybody, with fault 715.
	SourceNeeded bool
	// AnySourceOnly refuses to serve one remote host only, with fault 726.
	AnySourceOnly bool
	// AnyPortOnly refuses all external ports but the wildcard 0 with fault 727.
	// Port 0 itself stays refused with 716.
	AnyPortOnly bool
	// Full is the fault while the table is full: 501 or 402 of some routers. Zero
	// is 728, or 501 in version 1.
	Full int
	// FullSilent answers success while the table is full, and maps nothing.
	FullSilent bool
	// Unlisted answers success and maps nothing, always.
	Unlisted bool
	// ListedClient, if valid, is the internal client of all mappings, whoever
	// asked.
	ListedClient netip.Addr
	// NoTraffic grants and lists, and forwards nothing.
	NoTraffic bool
	// IdleAfter removes mappings that nobody used for that long, on the gateway's
	// clock. Zero: none. With IdleAbove that is done only while the table has
	// more entries than it says.
	IdleAfter time.Duration
	IdleAbove int
	// RefusePrivate refuses mappings with fault 501 and tells an empty external
	// address while it is private or carrier-grade, in state Connected, as
	// miniupnpd does. By default the address is told and mapped.
	RefusePrivate bool
	// SwitchedOff refuses all changes with fault 606: the user has not allowed
	// this host to make them. Questions are answered.
	SwitchedOff bool
	// NoAddAny answers AddAnyPortMapping with fault 401, as in version 1.
	NoAddAny bool
	// AddAnyResets answers AddAnyPortMapping with a reset of the connection.
	AddAnyResets bool
}

// Listing has the quirks of GetGenericPortMappingEntry,
// GetSpecificPortMappingEntry and GetListOfPortMappings.
type Listing struct {
	// NoSpecific answers GetSpecificPortMappingEntry with fault 401.
	NoSpecific bool
	// Absent is GetSpecificPortMappingEntry's fault if there is nothing: 402 or
	// 501 of some routers. Zero is 714.
	Absent int
	// EndOfList is GetGenericPortMappingEntry's fault past the end: 714, 402, 501
	// or 899 of some routers. Zero is 713.
	EndOfList int
	// Endless answers every index past the end with an entry.
	Endless bool
	// IndexFails is GetGenericPortMappingEntry's fault at every index. Zero: none.
	IndexFails int
	// RangeEscaped has the listing of GetListOfPortMappings as escaped text rather
	// than in a CDATA section.
	RangeEscaped bool
	// NoRange answers GetListOfPortMappings with fault 401, as in version 1.
	NoRange bool
	// RangeResets answers GetListOfPortMappings with a reset of the connection.
	RangeResets bool
	// RangeCrashes dies of a GetListOfPortMappings that more than 128 entries
	// match, as miniupnpd 2.3.1 does: the connection is reset, and UPnP refuses
	// connections and searches until Restart or Up.
	RangeCrashes bool
}

// Status has the quirks of GetExternalIPAddress and GetStatusInfo.
type Status struct {
	// External is the external address as it is told, such as "", "0.0.0.0" or
	// "unknown"; it is called with the real one. Nil: that, or an empty string
	// while the gateway has none.
	External func(netip.Addr) string
	// Connection is the state told, such as "Up" or "Disconnected". Empty is
	// Connected, or Disconnected while the gateway has no external address.
	Connection string
	// Unsupported answers GetStatusInfo with fault 401.
	Unsupported bool
}

// Firewall has the quirks of WANIPv6FirewallControl:1.
type Firewall struct {
	// Disabled is a firewall that is switched off: fault 702.
	Disabled bool
	// NotAllowed is one that the user let nobody open: fault 703.
	NotAllowed bool
	// Absent is the fault if there is no such pinhole: 402 as of miniupnpd.
	// Zero is 704.
	Absent int
	// NeverWorking answers CheckPinholeWorking with fault 709 also after traffic.
	NeverWorking bool
}
