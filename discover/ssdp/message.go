package ssdp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// The limits of a message. Messages of real devices have about 400 bytes and a dozen
// headers.
const (
	maxDatagram = 8 << 10
	maxHeaders  = 64
)

// ErrMalformed is wrapped by the errors of ParseResponse and ParseNotification if the
// datagram is another kind of message, or lacks a required header.
var ErrMalformed = errors.New("malformed SSDP datagram")

func malformed(format string, args ...any) error {
	return fmt.Errorf("ssdp: %w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// ID is an optional number in a message, such as BOOTID.UPNP.ORG. The zero ID means
// that the number is absent. IDs can be compared with ==.
type ID struct {
	Value uint32
	Valid bool // whether the device sent a valid number
}

// String returns the number, or "none" if it is absent.
func (id ID) String() string {
	if !id.Valid {
		return "none"
	}
	return strconv.FormatUint(uint64(id.Value), 10)
}

// NotificationKind is the kind of a notification (NTS).
type NotificationKind uint8

// The kinds of notifications (UPnP Device Architecture 1.1, sections 1.2.2 to 1.2.4).
const (
	Alive  NotificationKind = iota + 1 // the device is available
	ByeBye                             // the device is about to leave the network
	Update                             // the BootID changes to NextBootID, without a restart
)

// String returns the kind as it is sent, without the prefix "ssdp:".
func (k NotificationKind) String() string {
	if k < Alive || k > Update {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [...]string{"", "alive", "byebye", "update"}[k]
}

// Notification is a multicast message in which a device announces itself or one of its
// services (UPnP Device Architecture 1.1, section 1.2).
type Notification struct {
	Kind NotificationKind
	// From is the address and port of the sender; the port can have any value. A
	// link-local address has its zone.
	From netip.AddrPort
	// Location is the URL of the device's description as it was sent, without the
	// spaces around it. It is never empty for Alive. It is not checked.
	Location string
	// Type is the type of the announced device or service (NT), USN is its unique
	// name, and Server is the name of the product. USN is never empty.
	Type, USN, Server string
	// MaxAge is the time for which an Alive is valid, or zero if the device did not
	// state it.
	MaxAge time.Duration
	// BootID changes when the device restarts, and ConfigID changes with its
	// description; UPnP 1.0 has neither. Only Update has a NextBootID. Some devices
	// never change these numbers.
	BootID, NextBootID, ConfigID ID
}

// UDN returns the unique name of the device in USN, "uuid:…", or "" if USN has none.
func (n Notification) UDN() string { return udn(n.USN) }

// ParseNotification parses a notification: a NOTIFY of a known kind that has a USN and,
// if it is an Alive, a LOCATION. It leaves From zero. Errors wrap [ErrMalformed].
func ParseNotification(b []byte) (Notification, error) {
	m, err := parse(b)
	if err != nil {
		return Notification{}, err
	}
	method, rest := cutWord(m.start)
	_, version := cutWord(rest)
	if method != "NOTIFY" || !isHTTP1(strings.TrimRight(version, " ")) {
		return Notification{}, malformed("not a notification")
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
	nts := strings.ToLower(m.headers["nts"])
	for kind := Alive; kind <= Update; kind++ {
		if nts == "ssdp:"+kind.String() {
			n.Kind = kind
		}
	}
	switch {
	case n.Kind == 0:
		return Notification{}, malformed("notification of unknown kind %.40q", nts)
	case n.USN == "":
		return Notification{}, malformed("notification without USN")
	case n.Kind == Alive && n.Location == "":
		return Notification{}, malformed("alive without LOCATION")
	}
	return n, nil
}

// Response is a device's response to a search (UPnP Device Architecture 1.1, section
// 1.3.3).
type Response struct {
	// From is the address and port of the sender; the port can have any value. A
	// link-local address has its zone.
	From netip.AddrPort
	// Location is the URL of the device's description as it was sent, without the
	// spaces around it. It is never empty, and not checked otherwise.
	Location string
	// Target is the type of the device or service that responds (ST), USN is its
	// unique name, and Server is the name of the product. Each may be empty.
	Target, USN, Server string
	// MaxAge is the time for which the response is valid, or zero if the device did
	// not state it.
	MaxAge time.Duration
	// BootID changes when the device restarts, and ConfigID changes with its
	// description; UPnP 1.0 has neither. Some devices never change these numbers.
	BootID, ConfigID ID
}

// UDN returns the unique name of the device in USN, "uuid:…", or "" if USN has none.
func (r Response) UDN() string { return udn(r.USN) }

// ParseResponse parses a response: status 200, with a LOCATION. It leaves From zero.
// Errors wrap [ErrMalformed].
func ParseResponse(b []byte) (Response, error) {
	m, err := parse(b)
	if err != nil {
		return Response{}, err
	}
	version, rest := cutWord(m.start)
	if !isHTTP1(version) {
		return Response{}, malformed("not a response")
	}
	if status, _ := cutWord(rest); status != "200" {
		return Response{}, malformed("status %.40q", status)
	}
	r := Response{
		Location: m.headers["location"],
		Target:   m.headers["st"],
		USN:      m.headers["usn"],
		Server:   m.headers["server"],
		MaxAge:   m.maxAge(),
		BootID:   m.id("bootid.upnp.org"),
		ConfigID: m.id("configid.upnp.org"),
	}
	if r.Location == "" {
		return Response{}, malformed("response without LOCATION")
	}
	return r, nil
}

// message is a start line, and the headers in keptHeaders.
type message struct {
	start   string
	headers map[string]string // the keys are in keptHeaders
}

// keptHeaders are the names of the headers that parse keeps, in lower case.
var keptHeaders = []string{
	"bootid.upnp.org", "cache-control", "configid.upnp.org", "location", "nextbootid.upnp.org", "nt", "nts", "server", "st", "usn",
}

// parse reads a message up to its blank line, or up to its end if it has no blank line.
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

// add keeps the header in a line, unless the message already has a header of that name.
// A continuation line (RFC 7230 section 3.2.4) begins with white space. add does not trim
// that, so the name of such a line is never in keptHeaders.
func (m message) add(line []byte) {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		return
	}
	key := strings.ToLower(string(bytes.TrimRight(name, " \t")))
	if _, twice := m.headers[key]; twice || !slices.Contains(keptHeaders, key) {
		return
	}
	// A tab is valid white space within a value. It becomes a space, because callers
	// get no control characters.
	m.headers[key] = strings.Trim(strings.ReplaceAll(string(value), "\t", " "), " ")
}

// cutLine splits off the first line, without its line end.
func cutLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte("\n"))
	return bytes.TrimRight(line, "\r"), rest
}

func hasControl(b []byte) bool {
	return bytes.ContainsFunc(b, func(r rune) bool { return unicode.IsControl(r) && r != '\t' })
}

// isHTTP1 reports whether s is the name of an HTTP version 1.x.
func isHTTP1(s string) bool {
	return len(s) == len("HTTP/1.1") && strings.HasPrefix(s, "HTTP/1.")
}

// cutWord splits off the first word.
func cutWord(s string) (word, rest string) {
	word, rest, _ = strings.Cut(s, " ")
	return word, strings.TrimLeft(rest, " ")
}

// id parses the number in a header. The ID is absent if the header is missing or is not
// a number of 32 bits.
func (m message) id(name string) ID {
	n, err := strconv.ParseUint(m.headers[name], 10, 32)
	if err != nil {
		return ID{}
	}
	return ID{Value: uint32(n), Valid: true}
}

// maxAge returns the max-age of CACHE-CONTROL, or 0 if it is missing or invalid.
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

// udn returns the part of a unique service name (USN) that names the device.
func udn(usn string) string {
	const scheme = "uuid:"
	name, _, _ := strings.Cut(usn, "::")
	if len(name) <= len(scheme) || !strings.EqualFold(name[:len(scheme)], scheme) {
		return ""
	}
	return name
}
