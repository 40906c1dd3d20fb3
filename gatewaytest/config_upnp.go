package gatewaytest

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/natforward/goforward/backends"
)

// UPnP has the options and quirks of the Internet Gateway Device. The zero
// value is a well-behaved IGD:2 (UPnP Device Architecture 1.1; WANIPConnection:2;
// WANIPv6FirewallControl:1). All quirks can be combined. Its functions are called
// without a lock held, possibly at once.
type UPnP struct {
	// Off is a gateway that knows no UPnP.
	Off bool
	// Version is that of the devices and services, 1 or 2. Zero is 2. Version 1 has
	// no AddAnyPortMapping, GetListOfPortMappings, DeletePortMappingRange nor the
	// IPv6 firewall service; a lease of 0 is permanent there, and the maximum of
	// a week in version 2.
	Version int
	// SSDP is where searches are answered. The zero address is that of
	// [Config.Listen], port 0 any free port. No multicast group is joined.
	SSDP netip.AddrPort
	// HTTP is where description and control are served. The zero address is that
	// of [Config.Listen], port 0 any free port. With [Config.Listen6] they are
	// served there too, and so are searches, on any free port each.
	HTTP netip.AddrPort
	// Notify is where notifications go: a socket of the test, or
	// 239.255.255.250:1900 as the standard says. The zero value: nowhere.
	Notify netip.AddrPort
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
	Search      UPnPSearch
	Description UPnPDescription
	Wire        UPnPWire
	XML         UPnPXML
	FaultForm   UPnPFaultForm
	// Demands are what requests have to be like.
	Demands UPnPDemands
	// Leases, Rules, Listing, Status and Firewall have the quirks of the actions.
	Leases   UPnPLeases
	Rules    UPnPRules
	Listing  UPnPListing
	Status   UPnPStatus
	Firewall UPnPFirewall
}

// withDefaults fills in the zero values and refuses what makes no sense.
func (u UPnP) withDefaults(listen netip.Addr) (UPnP, error) {
	if u.Version == 0 {
		u.Version = 2
	}
	for _, at := range []*netip.AddrPort{&u.SSDP, &u.HTTP} {
		if !at.Addr().IsValid() {
			*at = netip.AddrPortFrom(listen, at.Port())
		}
		if !at.Addr().Is4() || at.Addr().IsMulticast() {
			return u, fmt.Errorf("gatewaytest: %w: UPnP on %v, which is no IPv4 address of a host", backends.ErrInvalid, at)
		}
	}
	if u.UDN == "" {
		u.UDN = randomUDN()
	}
	if u.Description.Path == "" {
		u.Description.Path = "/rootDesc.xml"
	}
	if u.Description.WANDevices == 0 {
		u.Description.WANDevices = 1
	}
	d := u.Description
	switch {
	case u.Version < 1 || u.Version > 2 || u.Search.Version < 0 || u.Search.Version > 2:
		return u, fmt.Errorf("gatewaytest: %w: IGD version %d, searched as %d", backends.ErrInvalid, u.Version, u.Search.Version)
	case !strings.HasPrefix(u.UDN, "uuid:") || strings.ContainsAny(u.UDN, "\r\n<&"):
		return u, fmt.Errorf("gatewaytest: %w: UDN %q", backends.ErrInvalid, u.UDN)
	case !strings.HasPrefix(d.Path, "/") || strings.ContainsAny(d.Path, " \r\n"):
		return u, fmt.Errorf("gatewaytest: %w: description path %q", backends.ErrInvalid, d.Path)
	case d.WANDevices < 0 || d.WANDevices > 16 || d.Connected < 0 || d.Connected >= d.WANDevices:
		return u, fmt.Errorf("gatewaytest: %w: %d WAN devices, number %d connected", backends.ErrInvalid, d.WANDevices, d.Connected)
	case u.Leases.Max < 0 || u.Leases.Reported < 0 || u.Rules.IdleAfter < 0 || u.Rules.IdleAbove < 0 || u.Demands.MaxDescription < 0:
		return u, fmt.Errorf("gatewaytest: %w: negative number in Config.UPnP", backends.ErrInvalid)
	case u.Rules.ListedClient.IsValid() && !u.Rules.ListedClient.Is4():
		return u, fmt.Errorf("gatewaytest: %w: listed client %v is not IPv4", backends.ErrInvalid, u.Rules.ListedClient)
	}
	return u, nil
}
