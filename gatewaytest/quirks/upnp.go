package quirks

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
