package quirks

// PCP has the options and quirks of the PCP server. The zero value follows
// RFC 6887, and maps what the external address can do, whatever that is.
type PCP struct {
	// Off is a gateway that knows only NAT-PMP: other versions get
	// [NATPMP.VersionError].
	Off bool
	// ThirdParty lets every client map for other hosts. By default the option is
	// refused with result 5, as home routers do.
	ThirdParty bool
	// AllPorts lets a host have all ports of a protocol (internal port 0), or of
	// all protocols (protocol 0 too), while no other host has one of them. By
	// default that is refused with result 9, or 3 if WildcardMalformed is set.
	AllPorts          bool
	WildcardMalformed bool
	// MaxFilters is how many filters a mapping has at most, before result 13.
	// Zero is 64.
	MaxFilters int
	// MappingUpdates lets gatewaytest.Gateway.SetExternal tell the clients of each
	// mapping, as its UpdateMappings does.
	MappingUpdates bool
	// UpdateCount is how often each is told, 250 ms, 500 ms … apart. Zero is
	// three times (RFC 6887, section 14.2).
	UpdateCount int

	// NAT pretends that another NAT stands between client and gateway: result 12, always.
	NAT bool
	// RefusePrivate refuses IPv4 mappings while the external address is private
	// or carrier-grade, with result 8, a lifetime of 30 s and that address in
	// place of the mapping's, as miniupnpd does. By default the address is
	// granted. Without any address (0.0.0.0) the result is always 7.
	RefusePrivate bool

	// NonceLoose renews a mapping whatever the nonce, which becomes the mapping's,
	// as miniupnpd does. Deletions need the right one all the same.
	NonceLoose bool
	// FilterIgnored accepts filters and admits everybody, as miniupnpd does.
	FilterIgnored bool
	// PreferFailureIgnored takes the option as not being there: success with
	// another port.
	PreferFailureIgnored bool
	// DeleteUnknownNoResources answers the deletion of what is not there with
	// result 8, as miniupnpd does. By default it is success (RFC 6887, section 15).
	DeleteUnknownNoResources bool
	// ErrorLifetimeZero tells 0 as the lifetime of all errors but the short
	// ones, as miniupnpd does.
	ErrorLifetimeZero bool
	// OptionsEchoed repeats all options of the request in successes, also those
	// that the server does not know, as miniupnpd does.
	OptionsEchoed bool
	// VersionOne is a server of the draft before the standard: everything gets
	// result 1 and version 1.
	VersionOne bool
	// NoAnnounce leaves ANNOUNCE requests unanswered; AnnounceUnsupported refuses
	// them with result 4. Unsolicited announcements are another matter.
	NoAnnounce          bool
	AnnounceUnsupported bool
	// NoPeer refuses PEER requests with result 4.
	NoPeer bool
}
