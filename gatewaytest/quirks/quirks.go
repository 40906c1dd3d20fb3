// Package quirks defines how a router of package gatewaytest can differ from the
// standards, and the protocol options that few routers have. It contains only types, for
// gatewaytest.Config.Quirks.
//
// Real IGDs differ from each other in many ways, and nearly every field of [UPnP]
// describes the behavior of a real device: its responses to searches ([Search]), its
// description ([Description]), the encoding of its messages ([Wire], [XML], [FaultForm]),
// its requirements on requests ([Demands]), and its handling of mappings ([Leases],
// [Rules], [Listing], [Status], [Firewall]), and its events ([Events]). All quirks can be combined:
//
//	quirks.Quirks{UPnP: quirks.UPnP{
//		Version: 1,
//		Leases:  quirks.Leases{PermanentOnly: 725},
//		Wire:    quirks.Wire{NoLength: true, HTTP10: true},
//		Search:  quirks.Search{OtherPort: true, NoIGD2: true},
//	}}
//
// To make only selected requests fail, use a gatewaytest.Fault.
package quirks

// Quirks are the quirks of one router. The zero value has none: the router follows the
// standards.
type Quirks struct {
	// NATPMP has the quirks of the NAT-PMP server.
	NATPMP NATPMP
	// PCP has the options and quirks of the PCP server, which uses the same port as the
	// NAT-PMP server.
	PCP PCP
	// UPnP has the options and quirks of the Internet Gateway Device.
	UPnP UPnP
	// AnnounceAs is the form of announcements over IPv4. The zero value means the
	// NAT-PMP form, or the PCP form if the gateway does not support NAT-PMP.
	AnnounceAs AnnounceForm
	// AnnounceCount is the number of packets of an announcement, 250 ms, 500 ms, 1 s …
	// apart. Zero means ten (RFC 6886, section 3.2.1; RFC 6887, section 14.1). UPnP
	// notifications are sent at most three times.
	AnnounceCount int
}

// AnnounceForm is the protocol of announcements.
type AnnounceForm uint8

// The forms of an announcement.
const (
	// AnnounceNATPMP sends the 12 bytes of NAT-PMP (RFC 6886, section 3.2.1).
	AnnounceNATPMP AnnounceForm = iota
	// AnnouncePCP sends the 24 bytes of the PCP ANNOUNCE opcode (RFC 6887, section
	// 14.1).
	AnnouncePCP
	// AnnounceBoth sends the NAT-PMP form and then the PCP form.
	AnnounceBoth
)
