package upnp

import (
	"bytes"
	"encoding/xml"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep elements nest; a description of the standard's shape
// has 9.
const maxDepth = 32

// element is an element of a document that a device sent: prefixes and
// attributes are ignored, names compare without regard to case.
type element struct {
	name     string
	text     string // outside of children, trimmed
	children []*element
	closed   bool // its end, or that of an element around it, was seen
}

// parseXML reads as much of a document as can be read, up to where it breaks
// off or breaks the rules; the element returned holds the outermost ones. It
// fails, with backends.ErrMalformed, on more elements or depth than allowed.
func parseXML(b []byte, maxElements int) (*element, error) {
	d := xml.NewDecoder(bytes.NewReader(utf8XML(b)))
	d.Strict = false
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	t := newTreeBuilder()
	for {
		token, err := d.RawToken() // Token would give up at the first missing end tag
		if err != nil {
			return t.open[0], nil //nolint:nilerr // what came before is what the device managed to say
		}
		switch token := token.(type) {
		case xml.StartElement:
			if t.elements++; t.elements > maxElements || len(t.open) > maxDepth {
				return nil, malformed("XML with %d elements, %d deep", t.elements, len(t.open))
			}
			t.start(token.Name.Local)
		case xml.EndElement:
			t.close(token.Name.Local)
		case xml.CharData:
			t.texts[len(t.texts)-1].Write(token)
		}
	}
}

// tree is a document while it is read: the elements that are open, outermost
// first, and the text of each so far.
type treeBuilder struct {
	open     []*element
	texts    []*strings.Builder
	elements int
}

func newTreeBuilder() *treeBuilder {
	return &treeBuilder{open: []*element{{}}, texts: []*strings.Builder{{}}}
}

func (t *treeBuilder) start(name string) {
	e := &element{name: name}
	parent := t.open[len(t.open)-1]
	parent.children = append(parent.children, e)
	t.open = append(t.open, e)
	t.texts = append(t.texts, new(strings.Builder))
}

// close ends the innermost open element of that name, and those in it that
// were left open. An end without a start is ignored.
func (t *treeBuilder) close(name string) {
	for i := len(t.open) - 1; i > 0; i-- {
		if strings.EqualFold(t.open[i].name, name) {
			t.finish(i)
			t.open, t.texts = t.open[:i], t.texts[:i]
			return
		}
	}
}

// finish ends the open elements from i on. Until then they have no text: half
// of it could mean something else.
func (t *treeBuilder) finish(i int) {
	for ; i < len(t.open); i++ {
		t.open[i].text, t.open[i].closed = strings.TrimSpace(t.texts[i].String()), true
	}
}

// child returns the first child of that name, or nil.
func (e *element) child(name string) *element {
	for _, c := range e.children {
		if strings.EqualFold(c.name, name) {
			return c
		}
	}
	return nil
}

// find returns the first element of that name below e, in document order, or nil.
func (e *element) find(name string) *element {
	for _, c := range e.children {
		if strings.EqualFold(c.name, name) {
			return c
		}
		if found := c.find(name); found != nil {
			return found
		}
	}
	return nil
}

// write appends <name>, the text, </name>.
func writeElement(b *bytes.Buffer, name, text string) {
	b.WriteString("<" + name + ">")
	_ = xml.EscapeText(b, []byte(text)) // a Buffer takes everything
	b.WriteString("</" + name + ">")
}

// visit calls f for the elements of that name below e, in document order.
func (e *element) visit(name string, f func(*element)) {
	for _, c := range e.children {
		if strings.EqualFold(c.name, name) {
			f(c)
		}
		c.visit(name, f)
	}
}

// value is the text of the first child with one of the names, or empty.
func (e *element) value(names ...string) string {
	for _, name := range names {
		if c := e.child(name); c != nil {
			return c.text
		}
	}
	return ""
}

// content is the element's text. Markup in it that should have been escaped is
// text again.
func (e *element) content() string {
	if len(e.children) == 0 {
		return e.text
	}
	var b bytes.Buffer
	for _, c := range e.children {
		c.writeMarkup(&b)
	}
	return b.String()
}

func (e *element) writeMarkup(b *bytes.Buffer) {
	if len(e.children) == 0 {
		writeElement(b, sanitizeName(e.name), e.text)
		return
	}
	b.WriteString("<" + sanitizeName(e.name) + ">")
	for _, c := range e.children {
		c.writeMarkup(b)
	}
	b.WriteString("</" + sanitizeName(e.name) + ">")
}

// plainName is a name that needs no escaping.
func sanitizeName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_' {
			return r
		}
		return '_'
	}, name)
}

var charRef = regexp.MustCompile(`&#(x[0-9a-fA-F]{1,8}|[0-9]{1,10});`)

// utf8XML is a document as UTF-8 that XML allows, without the declaration that
// may contradict it. Whatever is declared, what is not valid UTF-8 is taken for
// ISO-8859-1: every byte means something in it, and the names in a document
// that we need are ASCII in all charsets that devices use.
func utf8XML(b []byte) []byte {
	start := bytes.IndexByte(b, '<') // drops byte order mark and leading space
	if start < 0 {
		return nil
	}
	b = b[start:]
	latin1 := !utf8.Valid(b)
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := rune(b[0]), 1
		if !latin1 {
			r, n = utf8.DecodeRune(b)
		}
		b = b[n:]
		switch {
		case r == '<' && !startsMarkup(b):
			out = append(out, "&lt;"...)
		case isXMLChar(r):
			out = utf8.AppendRune(out, r)
		}
	}
	if bytes.HasPrefix(out, []byte("<?xml")) {
		_, out, _ = bytes.Cut(out, []byte("?>"))
	}
	return charRef.ReplaceAllFunc(out, replaceIllegalRef)
}

// startsMarkup reports whether what follows a < makes it one.
func startsMarkup(rest []byte) bool {
	if len(rest) == 0 {
		return true
	}
	c := rest[0]
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf || bytes.IndexByte([]byte("_/!?"), c) >= 0
}

// replaceIllegalRef keeps a reference to a character that XML does not allow
// from ending the document early: other hosts of the network may have put one
// into the table.
func replaceIllegalRef(ref []byte) []byte {
	digits, radix := string(ref[2:len(ref)-1]), 10
	if digits[0] == 'x' {
		digits, radix = digits[1:], 16
	}
	n, err := strconv.ParseUint(digits, radix, 32)
	if err != nil || n > utf8.MaxRune || !isXMLChar(rune(n)) {
		return []byte("?")
	}
	return ref
}

// isXMLChar reports whether XML 1.0 allows the character.
func isXMLChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' ||
		r >= ' ' && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= utf8.MaxRune
}
