// Package quirks has the ways in which a router of package gatewaytest differs from the
// standards, and the options of its protocols that few routers have. It has types only:
// gatewaytest.Config.Quirks takes them.
//
// No two IGDs are alike, and nearly every field of [UPnP] is something that one
// of them does: how it answers searches ([Search]), what it says of itself
// ([Description]), the bytes in which it does ([Wire], [XML], [FaultForm]), what it
// requires of requests ([Demands]), and what becomes of mappings ([Leases], [Rules],
// [Listing], [Status], [Firewall]). All quirks can be combined:
//
//	quirks.Quirks{UPnP: quirks.UPnP{
//		Version: 1,
//		Leases:  quirks.Leases{PermanentOnly: 725},
//		Wire:    quirks.Wire{NoLength: true, HTTP10: true},
//		Search:  quirks.Search{OtherPort: true, NoIGD2: true},
//	}}
//
// If something is to go wrong only once, use a gatewaytest.Fault.
package quirks

// Quirks are those of one router. The zero value has none: the router follows the
// standards.
type Quirks struct {
	// NATPMP has the quirks of the NAT-PMP server.
	NATPMP NATPMP
	// PCP has the options and quirks of the PCP server, which has the same port.
	PCP PCP
	// UPnP has the options and quirks of the Internet Gateway Device.
	UPnP UPnP
	// AnnounceAs is the form of announcements over IPv4. The zero value is NAT-PMP's,
	// or PCP's if the gateway does not speak NAT-PMP.
	AnnounceAs AnnounceForm
	// AnnounceCount is how many packets an announcement has, 250 ms, 500 ms,
	// 1 s … apart. Zero is ten (RFC 6886, section 3.2.1; RFC 6887, section 14.1).
	// The notifications of UPnP are three at most.
	AnnounceCount int
}

// AnnounceForm is the protocol of announcements.
type AnnounceForm uint8

// The forms of an announcement.
const (
	// AnnounceNATPMP: 12 bytes (RFC 6886, section 3.2.1).
	AnnounceNATPMP AnnounceForm = iota
	// AnnouncePCP: 24 bytes, the ANNOUNCE opcode (RFC 6887, section 14.1).
	AnnouncePCP
	// AnnounceBoth: first the one, then the other.
	AnnounceBoth
)
