package quirks

// PCP has the options and quirks of the PCP server. The zero value follows RFC 6887, and
// grants mappings even if the external address is private.
type PCP struct {
	// ThirdParty permits every client to map for other hosts. By default, the option is
	// refused with result 5, as home routers do.
	ThirdParty bool
	// AllPorts permits a host to map all ports of a protocol (internal port 0), or of
	// all protocols (protocol 0 too), if no other host has one of them. By default, such
	// a request is refused with result 9, or with result 3 if WildcardMalformed is set.
	AllPorts          bool
	WildcardMalformed bool
	// MaxFilters is the maximum number of filters of a mapping. A request for more is
	// refused with result 13. Zero means 64.
	MaxFilters int
	// MappingUpdates makes gatewaytest.Gateway.SetExternal inform the clients of each
	// mapping, as its UpdateMappings does.
	MappingUpdates bool
	// UpdateCount is the number of times that each update is sent, 250 ms, 500 ms …
	// apart. Zero means three (RFC 6887, section 14.2).
	UpdateCount int

	// NAT simulates another NAT between client and gateway: the result is always 12.
	NAT bool
	// RefusePrivate refuses IPv4 mappings while the external address is private or
	// carrier-grade, as miniupnpd does. The response has result 8, a lifetime of 30 s,
	// and that address in place of the mapping's address. By default, mappings on such
	// an address are granted. Without an external address (0.0.0.0), the result is
	// always 7.
	RefusePrivate bool

	// NonceLoose renews a mapping regardless of the nonce in the request, which becomes
	// the nonce of the mapping, as miniupnpd does. A deletion still requires the nonce
	// of the mapping.
	NonceLoose bool
	// FilterIgnored accepts filters and admits all hosts, as miniupnpd does.
	FilterIgnored bool
	// PreferFailureIgnored ignores the PREFER_FAILURE option: the result is success,
	// possibly with another port.
	PreferFailureIgnored bool
	// DeleteUnknownNoResources responds to the deletion of a mapping that does not exist
	// with result 8, as miniupnpd does. By default, the result is success (RFC 6887,
	// section 15).
	DeleteUnknownNoResources bool
	// ErrorLifetimeZero reports a lifetime of 0 in all error responses except those with
	// a short lifetime, as miniupnpd does.
	ErrorLifetimeZero bool
	// OptionsEchoed copies all options of the request into success responses, including
	// options that the server does not support, as miniupnpd does.
	OptionsEchoed bool
	// VersionOne simulates a server of the draft before the standard: each response has
	// result 1 and version 1.
	VersionOne bool
	// NoAnnounce does not respond to ANNOUNCE requests. AnnounceUnsupported refuses them
	// with result 4. Neither affects unsolicited announcements.
	NoAnnounce          bool
	AnnounceUnsupported bool
	// NoPeer refuses PEER requests with result 4.
	NoPeer bool
	// DropOptions does not respond to messages with options.
	DropOptions bool
}
