package ssdp

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// NotificationKind is what a device announces (NTS).
type NotificationKind uint8

// The kinds of notice (UPnP Device Architecture 1.1, sections 1.2.2 to 1.2.4).
const (
	Alive  NotificationKind = iota + 1 // it is there
	ByeBye                             // it is about to go
	Update                             // its BootID becomes NextBootID, without a restart
)

// String is the kind as on the wire, less "ssdp:".
func (k NotificationKind) String() string {
	switch k {
	case Alive:
		return "alive"
	case ByeBye:
		return "byebye"
	case Update:
		return "update"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Notification is what a device announces to everybody about itself or one of its
// services (UPnP Device Architecture 1.1, section 1.2).
type Notification struct {
	Kind NotificationKind
	// From is who sent it, from whatever port. A link-local address has its zone.
	From netip.AddrPort
	// Location is the URL of the device's description as it was sent, less space
	// around it. It is never empty for Alive, and unchecked.
	Location string
	// Type is what the notice is about (NT), USN its unique name, Server the
	// product. USN is never empty.
	Type, USN, Server string
	// MaxAge is how long an Alive holds; zero where the device did not say.
	MaxAge time.Duration
	// BootID changes when the device restarts, and ConfigID with its description;
	// UPnP 1.0 has neither. NextBootID comes with Update. Some devices send the
	// same numbers for ever.
	BootID, NextBootID, ConfigID ID
}

// UDN returns the unique name of the device that the notice is about, "uuid:…",
// or "" where there is none.
func (n Notification) UDN() string { return udn(n.USN) }

// ParseNotification reads a notice: a NOTIFY of a known kind with a USN and, for Alive,
// a LOCATION. From is left zero. Errors wrap [ErrMalformed].
func ParseNotification(b []byte) (Notification, error) {
	m, err := parse(b)
	if err != nil {
		return Notification{}, err
	}
	method, rest := cutWord(m.start)
	_, version := cutWord(rest)
	if method != "NOTIFY" || !isHTTP1(strings.TrimRight(version, " ")) {
		return Notification{}, malformed("not a notice")
	}
	n := Notification{
		Location:   m.headers["location"],
		Type:       m.headers["nt"],
		USN:        m.headers["usn"],
		Server:     m.headers["server"],
		MaxAge:     m.maxAge(),
		BootID:     m.id("bootid.upnp.org"),
		NextBootID: m.id("nextbootid.upnp.org"),
		ConfigID:   m.id("configid.upnp.org"),
	}
	switch nts := strings.ToLower(m.headers["nts"]); nts {
	case "ssdp:alive":
		n.Kind = Alive
	case "ssdp:byebye":
		n.Kind = ByeBye
	case "ssdp:update":
		n.Kind = Update
	default:
		return Notification{}, malformed("notice of kind %.40q", nts)
	}
	switch {
	case n.USN == "":
		return Notification{}, malformed("notice without USN")
	case n.Kind == Alive && n.Location == "":
		return Notification{}, malformed("alive without LOCATION")
	}
	return n, nil
}
