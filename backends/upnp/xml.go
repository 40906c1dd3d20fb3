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

// maxDepth is the maximum nesting depth of elements. A description of the
// standard has a depth of 9.
const maxDepth = 32

// element is an element of a document that a device sent. Prefixes and
// attributes are ignored, and names are compared without regard to case.
type element struct {
	name     string
	text     string // text outside of the children, trimmed
	children []*element
	closed   bool // the end tag of the element, or of one that contains it, was read
}

// parseXML reads a document up to its end or to the first error that it cannot
// skip. The children of the returned element are the outermost elements. If the
// document has too many elements or is nested too deeply, the error wraps
// backends.ErrMalformed.
func parseXML(b []byte, maxElements int) (*element, error) {
	d := xml.NewDecoder(bytes.NewReader(utf8XML(b)))
	d.Strict = false
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	t := newTreeBuilder()
	for {
		token, err := d.RawToken() // Token would fail at the first missing end tag
		if err != nil {
			return t.open[0], nil //nolint:nilerr // the elements before the error are used
		}
		switch token := token.(type) {
		case xml.StartElement:
			if t.elements++; t.elements > maxElements || len(t.open) > maxDepth {
				return nil, malformed("XML with %d elements and a depth of %d", t.elements, len(t.open))
			}
			t.start(token.Name.Local)
		case xml.EndElement:
			t.close(token.Name.Local)
		case xml.CharData:
			t.texts[len(t.texts)-1].Write(token)
		}
	}
}

// treeBuilder contains the state of parsing a document: the open elements, the
// outermost first, and the text of each so far.
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

// close closes the innermost open element with the name, and all elements in it
// that are still open. An end tag without a start tag is ignored.
func (t *treeBuilder) close(name string) {
	for i := len(t.open) - 1; i > 0; i-- {
		if strings.EqualFold(t.open[i].name, name) {
			t.finish(i)
			t.open, t.texts = t.open[:i], t.texts[:i]
			return
		}
	}
}

// finish closes the open elements from index i. An element has no text until it
// is closed, because an incomplete text could have another meaning.
func (t *treeBuilder) finish(i int) {
	for ; i < len(t.open); i++ {
		t.open[i].text, t.open[i].closed = strings.TrimSpace(t.texts[i].String()), true
	}
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

// find returns the first element with the name below e, in document order, or
// nil.
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

// writeElement appends an element with the name and the text.
func writeElement(b *bytes.Buffer, name, text string) {
	b.WriteString("<" + name + ">")
	_ = xml.EscapeText(b, []byte(text)) // writing to a Buffer does not fail
	b.WriteString("</" + name + ">")
}

// visit calls f for each element with the name below e, in document order.
func (e *element) visit(name string, f func(*element)) {
	for _, c := range e.children {
		if strings.EqualFold(c.name, name) {
			f(c)
		}
		c.visit(name, f)
	}
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

// content returns the text of the element. Markup that the device should have
// escaped is converted back to text.
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

// sanitizeName replaces the characters of a name that would need escaping.
func sanitizeName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_' {
			return r
		}
		return '_'
	}, name)
}

var charRef = regexp.MustCompile(`&#(x[0-9a-fA-F]{1,8}|[0-9]{1,10});`)

// utf8XML returns a document as UTF-8, without characters that XML forbids and
// without an XML declaration, which could name another charset. If the document
// is not valid UTF-8, it is read as ISO-8859-1, independent of its declaration:
// every byte is valid there, and the element names are ASCII in all charsets
// that devices use.
func utf8XML(b []byte) []byte {
	start := bytes.IndexByte(b, '<') // skips a byte order mark and leading space
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

// startsMarkup reports whether a < that is followed by rest starts a tag.
func startsMarkup(rest []byte) bool {
	if len(rest) == 0 {
		return true
	}
	c := rest[0]
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf || bytes.IndexByte([]byte("_/!?"), c) >= 0
}

// replaceIllegalRef replaces a reference to a character that XML forbids, because
// the parser would stop there. Other hosts of the network can write such
// references into the table.
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
