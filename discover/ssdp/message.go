package ssdp

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

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
