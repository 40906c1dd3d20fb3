package quirks

import (
	"net/netip"
	"time"
)

// UPnP has the options and quirks of the Internet Gateway Device. The zero value is a
// well-behaved IGD:2 (UPnP Device Architecture 1.1; WANIPConnection:2;
// WANIPv6FirewallControl:1). All quirks can be combined. The gateway calls functions in
// it without holding a lock, possibly concurrently.
type UPnP struct {
	// Version is the version of the devices and services, 1 or 2. Zero means 2. Version
	// 1 has no AddAnyPortMapping, no GetListOfPortMappings, no DeletePortMappingRange,
	// and no IPv6 firewall service. A lease of 0 is permanent in version 1, and means
	// the maximum of one week in version 2.
	Version int
	// UDN is the unique device name of the root device, including "uuid:". An empty
	// string means a random name.
	UDN string
	// AnyClient permits clients to map for other hosts, and to delete the mappings of
	// other hosts. By default, a request whose InternalClient is not the sender is
	// refused with fault 606, or with fault 718 in version 1.
	AnyClient bool
	// MovePort makes each Restart serve description and control on another port. The old
	// port refuses connections.
	MovePort bool

	// Search has the quirks of SSDP, Description of the device description, Wire of the
	// HTTP server, XML of all documents, and FaultForm of SOAP faults.
	Search      Search
	Description Description
	Wire        Wire
	XML         XML
	FaultForm   FaultForm
	// Demands are the requirements on requests.
	Demands Demands
	// Actions makes actions fail, regardless of their arguments.
	Actions Actions
	// Leases, Rules, Listing, Status and Firewall have the quirks of the actions.
	Leases   Leases
	Rules    Rules
	Listing  Listing
	Status   Status
	Firewall Firewall
	// Events has the quirks of subscriptions to events.
	Events Events
}

// Demands are the requirements on requests. A request that does not meet them is
// refused.
type Demands struct {
	// ExactSOAPAction requires the header name to be written SOAPAction or SOAPACTION.
	// Otherwise, the response has HTTP status 501.
	ExactSOAPAction bool
	// QuotedSOAPAction requires the value of SOAPAction to be in quotes. Otherwise, the
	// response has HTTP status 400.
	QuotedSOAPAction bool
	// SOAPActionNotLast simulates a router that reads the body as part of the last
	// header. If the last header is SOAPAction, the response has fault 401.
	SOAPActionNotLast bool
	// ContentType is the only Content-Type that is accepted; it must match exactly.
	// Otherwise, the response has HTTP status 415. An empty string means that any type
	// is accepted.
	ContentType string
	// UserAgent is a text that the User-Agent header must contain. Otherwise, the
	// response has HTTP status 400. An empty string means that any header is accepted.
	UserAgent string
	// LiteralHost requires an IP address in the Host header. Otherwise, the response has
	// HTTP status 400.
	LiteralHost bool
	// GetHTTP10 responds to GET requests in HTTP/1.1 with status 501.
	GetHTTP10 bool
	// Compact refuses requests with white space between elements, with fault 402.
	Compact bool
	// RemoteHost refuses a mapping request without the NewRemoteHost element, with fault
	// 402. NoZeroRemoteHost refuses a request with 0.0.0.0 in that element. By default,
	// no element and 0.0.0.0 mean any host.
	RemoteHost, NoZeroRemoteHost bool
	// UpperProtocol refuses the protocols "tcp" and "udp" in lower case with fault 402.
	UpperProtocol bool
	// BlankDescription is the fault for a description that is empty or white space.
	// OddDescription is the fault for a description with characters other than letters,
	// digits, space and "-_.". LongDescription is the fault for a description of more
	// than MaxDescription bytes. Typical codes are 402, 501 and 605. Zero means that
	// such a description is accepted.
	BlankDescription, OddDescription, LongDescription int
	// MaxDescription is the maximum length in bytes for LongDescription.
	MaxDescription int
}

// Actions are failures of actions. The key is the name of the action. The empty key
// applies to each action that has no key of its own.
type Actions struct {
	// Fault is the fault of the action, which is not performed. Zero means no fault.
	Fault map[string]int
	// Reset resets the connection, and does not perform the action.
	Reset map[string]bool
	// Hang sends no response, leaves the connection open until the client closes it, and
	// does not perform the action.
	Hang map[string]bool
	// NoReply performs the action, and closes the connection without a response.
	NoReply map[string]bool
	// Delay performs the action, and sends the response that much later, in real time.
	Delay map[string]time.Duration
}

// Leases has the quirks of lease durations.
type Leases struct {
	// PermanentOnly is the fault for every lease other than 0: 725, or 402 on some
	// routers. Zero means that all leases are accepted.
	PermanentOnly int
	// NoPermanent is the fault for lease 0, such as 402. Zero means the behavior that
	// [UPnP.Version] describes.
	NoPermanent int
	// NoLong is the fault for leases of more than one week, such as 402. Zero means that
	// version 2 reduces them to one week, and that version 1 grants them.
	NoLong int
	// Max is the maximum lease; longer and permanent leases are reduced to it. Zero
	// means no maximum. It applies only to UPnP mappings, in addition to
	// gatewaytest.Config.MaxLifetime.
	Max time.Duration
	// Reported is the lease that all listings report. Zero means the remaining lease.
	Reported time.Duration
	// ReportedZero reports 0 as the lease in all listings.
	ReportedZero bool
	// NoRefresh accepts a request for an existing mapping, but does not extend its
	// lease.
	NoRefresh bool
}

// Rules has the quirks that decide which mappings are created and which are refused.
type Rules struct {
	// NoReAdd is the fault for a mapping that the same client already has, such as 718.
	// Zero means that the mapping is overwritten, even with another internal port.
	NoReAdd int
	// OnePort refuses a second external port for an internal endpoint with fault 718.
	OnePort bool
	// OtherMechanism is the fault for a port that is mapped by a protocol other than
	// UPnP, such as 729. Zero means 718.
	OtherMechanism int
	// SamePort refuses an external port that differs from the internal port with fault
	// 724.
	SamePort bool
	// LowPorts is the fault for external ports below 1024, and for internal ports below
	// 1024 of pinholes: 606, or 718 on some routers. Zero means that these ports are
	// treated like others.
	LowPorts int
	// SourceNeeded refuses a mapping that admits all remote hosts, with fault 715.
	SourceNeeded bool
	// AnySourceOnly refuses a mapping that admits only one remote host, with fault 726.
	AnySourceOnly bool
	// AnyPortOnly refuses all external ports except the wildcard 0 with fault 727. Port
	// 0 itself is still refused with fault 716.
	AnyPortOnly bool
	// Full is the fault while the table is full: 501 or 402 on some routers. Zero means
	// 728, or 501 in version 1.
	Full int
	// FullSilent reports success while the table is full, but creates no mapping.
	FullSilent bool
	// Unlisted always reports success, but never creates a mapping.
	Unlisted bool
	// ListedClient, if valid, is the internal client of all mappings, regardless of the
	// requested one.
	ListedClient netip.Addr
	// NoTraffic grants and lists mappings, but forwards nothing.
	NoTraffic bool
	// IdleAfter deletes mappings that have not been used for that time, on the gateway's
	// clock. Zero means that none are deleted. Mappings are deleted only while the table
	// has more than IdleAbove entries.
	IdleAfter time.Duration
	IdleAbove int
	// RefusePrivate refuses mappings with fault 501 and reports an empty external
	// address while that address is private or carrier-grade, as miniupnpd does. The
	// reported state is still Connected. By default, the address is reported, and
	// mappings on it are granted.
	RefusePrivate bool
	// SwitchedOff refuses all changes with fault 606, as if the user had not permitted
	// this host to make them. Requests that only read are answered.
	SwitchedOff bool
	// NoAddAny responds to AddAnyPortMapping with fault 401, as in version 1.
	NoAddAny bool
	// AddAnyResets resets the connection in response to AddAnyPortMapping.
	AddAnyResets bool
	// AddDisabled creates mappings with NewEnabled 0, which forward nothing.
	AddDisabled bool
	// PortFault is the fault for mappings of the external port Port, such as -1 or 899.
	// Zero means that this port is treated like others.
	PortFault int
	Port      uint16
	// DeleteIgnored makes DeletePortMapping report success, but keep the mapping.
	DeleteIgnored bool
	// DeleteFault is the fault of every DeletePortMapping, which deletes nothing. Zero
	// means no fault.
	DeleteFault int
	// DeleteAbsent is the fault of DeletePortMapping if there is no such mapping: 713 on
	// some routers. Zero means 714.
	DeleteAbsent int
	// DeleteFailures is the number of calls of DeletePortMapping that fail with fault
	// 501 before others succeed.
	DeleteFailures int
}

// Listing has the quirks of GetGenericPortMappingEntry, GetSpecificPortMappingEntry and
// GetListOfPortMappings.
type Listing struct {
	// NoSpecific responds to GetSpecificPortMappingEntry with fault 401.
	NoSpecific bool
	// Absent is the fault of GetSpecificPortMappingEntry if there is no such mapping:
	// 402 or 501 on some routers. Zero means 714.
	Absent int
	// EndOfList is the fault of GetGenericPortMappingEntry past the end of the list:
	// 714, 402, 501 or 899 on some routers. Zero means 713.
	EndOfList int
	// Endless returns an entry for every index past the end of the list.
	Endless bool
	// IndexFails is the fault of GetGenericPortMappingEntry at every index. Zero means
	// no fault.
	IndexFails int
	// Client returns the NewInternalClient to list, such as "laptop.lan", "" or
	// "192.168.001.002". Its argument is the real address. Nil lists the real address.
	Client func(netip.Addr) string
	// MalformedRow makes GetGenericPortMappingEntry return the external port "abc" at
	// index 0.
	MalformedRow bool
	// RangeEscaped writes the listing of GetListOfPortMappings as escaped text instead
	// of a CDATA section.
	RangeEscaped bool
	// NoRange responds to GetListOfPortMappings with fault 401, as in version 1.
	NoRange bool
	// RangeResets resets the connection in response to GetListOfPortMappings.
	RangeResets bool
	// RangeCrashes simulates a crash if more than 128 entries match a
	// GetListOfPortMappings, as in miniupnpd 2.3.1: the connection is reset, and UPnP
	// refuses connections and does not answer searches until Restart or Up.
	RangeCrashes bool
}

// Status has the quirks of GetExternalIPAddress and GetStatusInfo.
type Status struct {
	// External returns the external address to report, such as "", "0.0.0.0" or
	// "unknown". Its argument is the real address. Nil reports the real address, or an
	// empty string while the gateway has none.
	External func(netip.Addr) string
	// Connection is the state to report, such as "Up" or "Disconnected". An empty string
	// means Connected, or Disconnected while the gateway has no external address.
	Connection string
	// Unsupported responds to GetStatusInfo with fault 401.
	Unsupported bool
}

// Firewall has the quirks of WANIPv6FirewallControl:1.
type Firewall struct {
	// Disabled simulates a firewall that is switched off: it admits all connections, and
	// requests for changes get fault 702.
	Disabled bool
	// NotAllowed simulates a firewall on which the user permits no pinholes: requests
	// for changes get fault 703.
	NotAllowed bool
	// Absent is the fault if there is no such pinhole: 402 on miniupnpd. Zero means 704.
	Absent int
	// NeverWorking responds to CheckPinholeWorking with fault 709 even after traffic.
	NeverWorking bool
}

// Events has the quirks of subscriptions to events.
type Events struct {
	// Undescribed describes services without an event URL.
	Undescribed bool
	// Status is the HTTP status of the response to all subscriptions, such as 404 or 501. Zero
	// means that they are accepted.
	Status int
	// Silent accepts subscriptions, but never connects to the callback.
	Silent bool
}
