package upnp

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth is the maximum nesting depth of elements. A description of the
// standard has a depth of 9.
const maxDepth = 32

// element is an element of a document that a device sent. Prefixes and
// attributes are ignored, and names are compared without regard to case.
type element struct {
	name     string
	text     string // text outside of the children, trimmed; empty until the element is closed
	children []*element
	closed   bool // the end tag of the element, or of one that contains it, was read
	content  strings.Builder
}

// parseXML reads a document and skips markup that it cannot read. The children of the
// returned element are the outermost elements. Entities are not expanded, except
// the predefined ones. If the document has too many elements or is nested too
// deeply, the error wraps backends.ErrMalformed.
func parseXML(b []byte, maxElements int) (*element, error) {
	p := parser{rest: decode(b), open: []*element{{}}, absent: map[string]bool{}}
	for p.rest != "" {
		p.next()
		if p.elements > maxElements || len(p.open) > maxDepth+1 {
			return nil, malformed("XML with %d elements and a depth of %d", p.elements, len(p.open)-1)
		}
	}
	return p.open[0], nil
}

// parser is the state of parsing a document.
type parser struct {
	rest     string
	open     []*element // the open elements, the outermost first
	elements int
	absent   map[string]bool // ends of sections that are not in rest, so that the time is linear
}

// sections contains the start and the end of markup that is not a tag.
var sections = []struct{ start, end string }{{"<!--", "-->"}, {"<?", "?>"}, {cdata, "]]>"}}

const (
	cdata  = "<![CDATA["
	blanks = " \t\n"
)

// next reads a text, a section or a tag. Without its end, a section is read as a
// tag or as text.
func (p *parser) next() {
	content := &p.open[len(p.open)-1].content
	for _, s := range sections {
		inner, isSection := strings.CutPrefix(p.rest, s.start)
		if !isSection {
			continue
		}
		if !p.absent[s.end] {
			text, rest, found := strings.Cut(inner, s.end)
			if found {
				if s.start == cdata {
					content.WriteString(text)
				}
				p.rest = rest
				return
			}
			p.absent[s.end] = true
		}
		if s.start == cdata {
			p.rest = inner
			return
		}
	}
	n, isTag := scan(p.rest)
	text := p.rest[:n]
	p.rest = p.rest[n:]
	if isTag {
		p.tag(strings.Trim(text[1:n-1], blanks))
	} else {
		content.WriteString(unescape(text))
	}
}

// scan returns the length of the tag, or else of the text, at the start of s.
// A tag ends at a > before the next <, unless they are in quotes. If a quoted
// value contains tags, its end quote is missing.
func scan(s string) (n int, isTag bool) {
	name := strings.TrimLeft(s[1:], blanks)
	if s[0] != '<' || name == "" || strings.IndexByte("/!?_:", name[0]) < 0 && !isLetter(name[0]) {
		if i := strings.IndexByte(s[1:], '<'); i >= 0 {
			return 1 + i, false
		}
		return len(s), false
	}
	for n = 1; n < len(s); n++ {
		switch s[n] {
		case '>':
			return n + 1, true
		case '<':
			return n, false
		case '"', '\'':
			value, _, found := strings.Cut(s[n+1:], s[n:n+1])
			_, rest, ended := strings.Cut(value, ">")
			if found && !(ended && strings.Contains(rest, "<")) {
				n += 1 + len(value)
			}
		}
	}
	return n, false
}

func isLetter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf
}

// tag processes the content of a tag. An end tag closes the innermost open
// element with its name, and all open elements in it. Without such an element, it
// is ignored.
func (p *parser) tag(tag string) {
	if name, isEnd := strings.CutPrefix(tag, "/"); isEnd {
		for i := len(p.open) - 1; i > 0; i-- {
			if strings.EqualFold(p.open[i].name, tagName(name)) {
				p.close(i)
				return
			}
		}
	} else if tag[0] != '!' && tag[0] != '?' {
		e, parent := &element{name: tagName(tag)}, p.open[len(p.open)-1]
		parent.children = append(parent.children, e)
		p.open = append(p.open, e)
		p.elements++
		if strings.HasSuffix(tag, "/") {
			p.close(len(p.open) - 1)
		}
	}
}

// close closes the open elements from index i.
func (p *parser) close(i int) {
	for _, e := range p.open[i:] {
		e.text, e.closed = strings.TrimSpace(e.content.String()), true
	}
	p.open = p.open[:i]
}

// tagName returns the name of a tag without its prefix. Some devices write no
// space between the name and xmlns.
func tagName(tag string) string {
	name := strings.Trim(tag, blanks)
	if end := strings.IndexAny(name, blanks+"/="); end >= 0 {
		glued := name[end] == '='
		if name = name[:end]; glued {
			name, _, _ = strings.Cut(name, "xmlns")
		}
	}
	return name[strings.LastIndexByte(name, ':')+1:]
}

// decode returns a document as UTF-8, without characters that XML forbids and
// with line feeds as line ends. If the document is not valid UTF-8, it is read as
// ISO-8859-1, independent of its declaration: every byte is valid there, and the
// element names are ASCII in all charsets that devices use.
func decode(b []byte) string {
	s := string(b)
	if !utf8.Valid(b) {
		var latin1 strings.Builder
		for _, c := range b {
			latin1.WriteRune(rune(c))
		}
		s = latin1.String()
	}
	return strings.Map(func(r rune) rune {
		if isXMLChar(r) {
			return r
		}
		return -1
	}, lineEnds.Replace(s))
}

var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

// maxReference is the maximum length of a reference without its & and ;.
const maxReference = 10

// unescape replaces the references in a text. Unknown ones and a bare & are
// text. Devices copy texts of other hosts, so a reference to a character that XML
// forbids becomes a question mark.
func unescape(text string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "&")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, _, _ := strings.Cut(rest[:min(len(rest), maxReference+1)], ";")
		if r := character(name); r != 0 && len(name) <= maxReference && len(name) < len(rest) {
			b.WriteRune(r)
			rest = rest[len(name)+1:]
		} else {
			b.WriteByte('&')
		}
		text = rest
	}
}

// character returns the character to which a reference refers, or 0.
func character(name string) rune {
	switch name {
	case "lt":
		return '<'
	case "gt":
		return '>'
	case "amp":
		return '&'
	case "quot":
		return '"'
	case "apos":
		return '\''
	}
	digits, isNumber := strings.CutPrefix(name, "#")
	hex, isHex := strings.CutPrefix(digits, "x")
	base := 10
	if isHex {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	switch {
	case !isNumber || err != nil:
		return 0
	case n > utf8.MaxRune || !isXMLChar(rune(n)):
		return '?'
	}
	return rune(n)
}

// isXMLChar reports whether XML 1.0 allows the character.
func isXMLChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' ||
		r >= ' ' && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= utf8.MaxRune
}

// child returns the first child with the name, or nil.
func (e *element) child(name string) *element {
	for _, c := range e.children {
		if strings.EqualFold(c.name, name) {
			return c
		}
	}
	return nil
}

// value returns the text of the first child that has one of the names, or an
// empty string.
func (e *element) value(names ...string) string {
	for _, name := range names {
		if c := e.child(name); c != nil {
			return c.text
		}
	}
	return ""
}

// items returns the elements with the name that are children of a list in e.
func (e *element) items(list, name string) []*element {
	var items []*element
	for _, l := range e.children {
		for _, c := range l.children {
			if strings.EqualFold(l.name, list) && strings.EqualFold(c.name, name) {
				items = append(items, c)
			}
		}
	}
	return items
}

// visit calls f for each element with the name below e, in document order, until
// f returns false.
func (e *element) visit(name string, f func(*element) bool) bool {
	for _, c := range e.children {
		if strings.EqualFold(c.name, name) && !f(c) || !c.visit(name, f) {
			return false
		}
	}
	return true
}

// find returns the first element with the name below e, in document order, or
// nil.
func (e *element) find(name string) (first *element) {
	e.visit(name, func(found *element) bool {
		first = found
		return false
	})
	return first
}
