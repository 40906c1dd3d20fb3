package cli

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/natforward/goforward/backends"
)

// maxLineLength is the length at which a line of a command's output is split.
const maxLineLength = 4096

// lineWriter calls emit for each line that is written to it.
type lineWriter struct {
	emit func(string)
	line []byte
}

func (w *lineWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		whole := end >= 0
		if !whole {
			end = len(b)
		}
		if room := maxLineLength - len(w.line); end > room {
			whole = false
			end = room
		}
		w.line = append(w.line, b[:end]...)
		b = b[end:]
		if whole {
			b = b[1:]
		}
		if whole || len(w.line) == maxLineLength {
			w.endLine()
		}
	}
	return n, nil
}

// endLine emits the current line.
func (w *lineWriter) endLine() {
	line := strings.TrimSuffix(string(w.line), "\r")
	w.emit(strings.ReplaceAll(line, "\t", "    "))
	w.line = w.line[:0]
}

// flush emits the rest that does not end with a newline.
func (w *lineWriter) flush() {
	if len(w.line) > 0 {
		w.endLine()
	}
}

// oneLine joins the lines of a text, such as the error of several attempts.
func oneLine(text string) string {
	var out string
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case out == "" || strings.HasSuffix(out, ":"):
			out = strings.TrimPrefix(out+" "+line, " ")
		default:
			out += "; " + line
		}
	}
	return out
}

// errorText returns the text of an error for people.
func errorText(err error) string { return libraryText(err.Error()) }

// clockText formats a time for the start of a line.
func clockText(at time.Time) string { return at.Local().Format(time.TimeOnly) }

// nextAttemptText describes the time of the next attempt to people. It returns "" if there is
// none.
func nextAttemptText(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return "; next try at " + clockText(at)
}

// mappingText describes a mapping, or a unit of mappings that differ only in the protocol and
// the offset of the ports.
func mappingText(ms []backends.Mapping) string {
	return fmt.Sprintf("%s %s → %s", protocolsText(ms), externalText(ms), rangeEndText(ms[0].Internal, portCount(ms)))
}

// externalText formats the external endpoint of a unit, as in 45.45.45.1:8080 or
// 45.45.45.1:27015-27020.
func externalText(ms []backends.Mapping) string { return rangeEndText(ms[0].External, portCount(ms)) }

// portText names the internal port or ports of a unit, with the protocol.
func portText(ms []backends.Mapping) string {
	n := portCount(ms)
	if n == 1 {
		return fmt.Sprintf("%s port %d", protocolsText(ms), ms[0].Internal.Port())
	}
	return protocolsText(ms) + " ports " + rangeText(ms[0].Internal.Port(), n)
}

// portCount returns the number of ports of a unit.
func portCount(ms []backends.Mapping) uint16 {
	return uint16(len(ms) / max(1, len(protocolNamesOf(ms))))
}

// rangeText formats consecutive ports.
func rangeText(first, count uint16) string {
	if count <= 1 {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, first+count-1)
}

// rangeEndText formats one side of a mapping with consecutive ports.
func rangeEndText(first netip.AddrPort, count uint16) string {
	text := endpointText(first)
	if count > 1 {
		text += fmt.Sprintf("-%d", first.Port()+count-1)
	}
	return text
}

func protocolsText(ms []backends.Mapping) string { return strings.Join(protocolNamesOf(ms), "+") }

// protocolNamesOf returns the name of each protocol of a unit once.
func protocolNamesOf(ms []backends.Mapping) (names []string) {
	for _, m := range ms {
		if name := m.Protocol.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func backendText(m backends.Mapping) string {
	return m.Backend + " at " + endpointText(m.Gateway)
}

func expiryText(expires time.Time) string {
	if expires.IsZero() {
		return "permanent"
	}
	return "until " + expires.Local().Format(time.DateTime)
}

// endpointText formats an endpoint. It omits an unknown address, and a port that is 0 because
// the protocol has a default port.
func endpointText(ap netip.AddrPort) string {
	switch {
	case ap == netip.AddrPort{}:
		return ""
	case !ap.Addr().IsValid():
		return fmt.Sprintf(":%d", ap.Port())
	case ap.Port() == 0:
		return ap.Addr().String()
	}
	return ap.String()
}

func addrText(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// sanitize escapes control characters: text from a gateway or a driver must not control the
// terminal.
func sanitize(s string) string {
	return escapeUnprintable(strings.ToValidUTF8(s, "\ufffd"), func(r rune) string {
		if r < 0x100 {
			return fmt.Sprintf(`\x%02x`, r)
		}
		return fmt.Sprintf(`\u%04x`, r)
	})
}

// escapeUnprintable replaces each rune that is not printable by its escaped form. It keeps
// newlines.
func escapeUnprintable(s string, form func(rune) string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		b.WriteString(form(r))
	}
	return b.String()
}

// joinNames joins names for people: a, b and c.
func joinNames(names []string) string {
	last := len(names) - 1
	if last < 1 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

// joinSome is joinNames for many names: it omits all but the first eight.
func joinSome(names []string) string {
	const most = 8
	if more := len(names) - most; more > 0 {
		names = append(slices.Clone(names[:most]), fmt.Sprintf("%d more", more))
	}
	return joinNames(names)
}
