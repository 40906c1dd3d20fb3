package ssdp

import (
	"net/netip"
	"time"
)

// Response is a device's answer to a search (UPnP Device Architecture 1.1, section
// 1.3.3).
type Response struct {
	// From is who answered, from whatever port. A link-local address has its zone.
	From netip.AddrPort
	// Location is the URL of the device's description as it was sent, less space
	// around it; never empty, and otherwise unchecked.
	Location string
	// Target is what answered the search (ST), USN its unique name, Server the
	// product. Each may be empty.
	Target, USN, Server string
	// MaxAge is how long the answer holds; zero where the device did not say.
	MaxAge time.Duration
	// BootID changes when the device restarts, and ConfigID with its description;
	// UPnP 1.0 has neither. Some devices send the same numbers for ever.
	BootID, ConfigID ID
}

// UDN returns the unique name of the device that USN is about, "uuid:…", or ""
// where there is none.
func (a Response) UDN() string { return udn(a.USN) }

// ParseResponse reads an answer: status 200, with a LOCATION. From is left zero.
// Errors wrap [ErrMalformed].
func ParseResponse(b []byte) (Response, error) {
	m, err := parse(b)
	if err != nil {
		return Response{}, err
	}
	version, rest := cutWord(m.start)
	if !isHTTP1(version) {
		return Response{}, malformed("not an answer")
	}
	if status, _ := cutWord(rest); status != "200" {
		return Response{}, malformed("status %.40q", status)
	}
	a := Response{
		Location: m.headers["location"],
		Target:   m.headers["st"],
		USN:      m.headers["usn"],
		Server:   m.headers["server"],
		MaxAge:   m.maxAge(),
		BootID:   m.id("bootid.upnp.org"),
		ConfigID: m.id("configid.upnp.org"),
	}
	if a.Location == "" {
		return Response{}, malformed("answer without LOCATION")
	}
	return a, nil
}
