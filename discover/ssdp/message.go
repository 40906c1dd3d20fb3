package ssdp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
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

// The largest message that is looked at. Real ones have some 400 bytes and a
// dozen headers.
const (
	maxDatagram = 8 << 10
	maxHeaders  = 64
)

// ErrMalformed is what ParseResponse and ParseNotification wrap for a datagram that is
// something else, or lacks what it needs.
var ErrMalformed = errors.New("malformed SSDP datagram")

func malformed(format string, args ...any) error {
	return fmt.Errorf("ssdp: %w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// ID is a number that a device may leave out: BOOTID.UPNP.ORG and its like. The
// zero ID is an absent one. IDs compare with ==.
type ID struct {
	Value uint32
	Valid bool // whether the device sent one that can be read
}

// String is the number, or "none".
func (id ID) String() string {
	if !id.Valid {
		return "none"
	}
	return strconv.FormatUint(uint64(id.Value), 10)
}

// message is a start line and the headers that are of use.
type message struct {
	start   string
	headers map[string]string // by the names in known
}

// known are the headers that are kept, in lower case.
var known = map[string]bool{
	"bootid.upnp.org":     true,
	"cache-control":       true,
	"configid.upnp.org":   true,
	"location":            true,
	"nextbootid.upnp.org": true,
	"nt":                  true,
	"nts":                 true,
	"server":              true,
	"st":                  true,
	"usn":                 true,
}

// parse reads a message up to its blank line, or to its end where that is
// missing.
func parse(b []byte) (message, error) {
	if len(b) > maxDatagram {
		return message{}, malformed("%d bytes", len(b))
	}
	start, rest := cutLine(b)
	if hasControl(start) {
		return message{}, malformed("control character in the start line")
	}
	m := message{start: string(start), headers: map[string]string{}}
	for n := 0; len(rest) > 0; n++ {
		var line []byte
		line, rest = cutLine(rest)
		switch {
		case len(line) == 0:
			return m, nil
		case n == maxHeaders:
			return message{}, malformed("more than %d headers", maxHeaders)
		case hasControl(line):
			return message{}, malformed("control character in a header")
		}
		m.add(line)
	}
	return m, nil
}

// add keeps the header of a line, unless there is one already. A line that is
// folded into the one before it (RFC 7230 section 3.2.4) begins with white space,
// which is left there and makes it no header of ours, whatever it looks like.
func (m message) add(line []byte) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		return
	}
	key := strings.ToLower(string(bytes.TrimRight(name, " \t")))
	if _, twice := m.headers[key]; twice || !known[key] {
		return
	}
	// A tab within a value is allowed white space; callers get no control
	// characters.
	m.headers[key] = strings.Trim(strings.ReplaceAll(string(value), "\t", " "), " ")
}

// cutLine takes the first line off, without its end.
func cutLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte("\n"))
	return bytes.TrimRight(line, "\r"), rest
}

func hasControl(b []byte) bool {
	return bytes.ContainsFunc(b, func(r rune) bool { return unicode.IsControl(r) && r != '\t' })
}

// isHTTP1 reports whether s is the name of any HTTP version 1.
func isHTTP1(s string) bool {
	return len(s) == len("HTTP/1.1") && strings.HasPrefix(s, "HTTP/1.")
}

// cutWord takes the first word off.
func cutWord(s string) (word, rest string) {
	word, rest, _ = strings.Cut(s, " ")
	return word, strings.TrimLeft(rest, " ")
}

// id reads a number, which is absent where it cannot be read.
func (m message) id(name string) ID {
	n, err := strconv.ParseUint(m.headers[name], 10, 32)
	if err != nil {
		return ID{}
	}
	return ID{Value: uint32(n), Valid: true}
}

// maxAge is the max-age of CACHE-CONTROL, 0 where it is absent or cannot be read.
func (m message) maxAge() time.Duration {
	for directive := range strings.SplitSeq(m.headers["cache-control"], ",") {
		name, value, _ := strings.Cut(directive, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "max-age") {
			continue
		}
		n, err := strconv.ParseUint(strings.Trim(value, ` "`), 10, 32)
		if err != nil {
			return 0
		}
		return time.Duration(n) * time.Second
	}
	return 0
}

// udn is the device's part of a unique service name.
func udn(usn string) string {
	const scheme = "uuid:"
	name, _, _ := strings.Cut(usn, "::")
	if len(name) <= len(scheme) || !strings.EqualFold(name[:len(scheme)], scheme) {
		return ""
	}
	return name
}
