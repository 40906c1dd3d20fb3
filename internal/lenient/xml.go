package lenient

import (
	"fmt"
	"html"
	"strings"
	"unicode/utf8"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lazyregexp"
)

// maxDepth is the maximum nesting depth of elements. A description of the
// standard has a depth of 9.
const maxDepth = 32

// Element is an element of a document that a device sent. Prefixes and
// attributes are ignored, and names are compared without regard to case.
type Element struct {
	Name     string
	Text     string // text outside of the children, trimmed; empty until the element is closed
	Children []*Element
	Closed   bool // the end tag of the element, or of one that contains it, was read
	content  strings.Builder
}

// parser is the state of parsing a document.
type parser struct {
	rest     string
	open     []*Element // the open elements, the outermost first
	elements int
	absent   map[string]bool // ends of sections that are not in rest
}

// sections contains the start and the end of markup that is not a tag.
var sections = []struct{ start, end string }{{"<!--", "-->"}, {"<?", "?>"}, {cdata, "]]>"}}

const (
	cdata  = "<![CDATA["
	blanks = " \t\n"
)

// Parse reads a document in linear time and skips markup that it cannot read.
// The children of the returned element are the outermost elements. Entities are
// not expanded, except the predefined ones. If the document has too many elements
// or is nested too deeply, the error wraps backends.ErrMalformed.
func Parse(b []byte, maxElements int) (*Element, error) {
	p := parser{rest: decode(b), open: []*Element{{}}, absent: map[string]bool{}}
	for p.rest != "" {
		p.next()
		if p.elements > maxElements || len(p.open) > maxDepth+1 {
			return nil, fmt.Errorf("%w: XML with %d elements and a depth of %d", backends.ErrMalformed, p.elements, len(p.open)-1)
		}
	}
	return p.open[0], nil
}

// decode returns a document as UTF-8 without control characters. If the document is not valid
// UTF-8, it is read as ISO-8859-1, independent of its declaration: every byte is valid there,
// and the element names are ASCII in all charsets that devices use.
func decode(b []byte) string {
	s := string(b)
	if !utf8.ValidString(s) {
		latin1 := make([]rune, len(b))
		for i, c := range b {
			latin1[i] = rune(c)
		}
		s = string(latin1)
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' {
			return -1
		}
		return r
	}, s)
}

// next reads a section, a tag or a text. A section without an end is read as a tag or a text.
func (p *parser) next() {
	content := &p.open[len(p.open)-1].content
	for _, s := range sections {
		inner, isSection := strings.CutPrefix(p.rest, s.start)
		if !isSection || p.absent[s.end] {
			continue
		}
		if text, rest, found := strings.Cut(inner, s.end); found {
			if s.start == cdata {
				content.WriteString(text)
			}
			p.rest = rest
			return
		}
		p.absent[s.end] = true
	}
	if p.rest = strings.TrimPrefix(p.rest, cdata); p.rest == "" {
		return
	}
	n, isTag := scan(p.rest)
	token := p.rest[:n]
	p.rest = p.rest[n:]
	switch {
	case isTag:
		p.tag(strings.Trim(token[1:n-1], blanks))
	case strings.Contains(token, "&"):
		content.WriteString(references().ReplaceAllStringFunc(token, html.UnescapeString))
	default:
		content.WriteString(token)
	}
}

// references matches the references that are replaced in texts. Other references are text.
var references = lazyregexp.New(`&(lt|gt|amp|quot|apos|#[0-9]{1,10}|#x[0-9A-Fa-f]{1,8});`)

// startsTag reports whether a < that begins a tag is at the start of s.
func startsTag(s string) bool {
	if s[0] != '<' {
		return false
	}
	name, _ := utf8.DecodeRuneInString(strings.TrimLeft(s[1:], blanks))
	return name >= utf8.RuneSelf && name != utf8.RuneError || strings.ContainsRune("/!?_:", name) || 'a' <= name|0x20 && name|0x20 <= 'z'
}

// scan returns the length of the tag, or else of the text, at the start of s. A
// tag ends at a > before the next <, unless they are in quotes. If a quoted value
// contains tags, its end quote is missing.
func scan(s string) (n int, isTag bool) {
	if !startsTag(s) {
		if next := strings.IndexByte(s[1:], '<'); next >= 0 {
			return 1 + next, false
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
			if found && (!ended || !strings.Contains(rest, "<")) {
				n += 1 + len(value)
			}
		}
	}
	return n, false
}

// tag reads a tag. An end tag closes the innermost open element with its name,
// and all open elements in it. If there is none, it is ignored.
func (p *parser) tag(tag string) {
	if name, isEnd := strings.CutPrefix(tag, "/"); isEnd {
		for i := len(p.open) - 1; i > 0; i-- {
			if strings.EqualFold(p.open[i].Name, tagName(name)) {
				p.close(i)
				return
			}
		}
	} else if tag[0] != '!' && tag[0] != '?' {
		e, parent := &Element{Name: tagName(tag)}, p.open[len(p.open)-1]
		parent.Children = append(parent.Children, e)
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
		e.Text, e.Closed = strings.TrimSpace(e.content.String()), true
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

// At returns the elements at a path below e, in document order.
func (e *Element) At(path ...string) (found []*Element) {
	if len(path) == 0 {
		return []*Element{e}
	}
	for _, c := range e.Children {
		if strings.EqualFold(c.Name, path[0]) {
			found = append(found, c.At(path[1:]...)...)
		}
	}
	return found
}

// Value returns the text of the first child that has one of the names, or an empty string.
func (e *Element) Value(names ...string) string {
	for _, name := range names {
		if found := e.At(name); len(found) > 0 {
			return found[0].Text
		}
	}
	return ""
}

// All returns the elements with the name at any depth below e, in document order.
func (e *Element) All(name string) (found []*Element) {
	for _, c := range e.Children {
		if strings.EqualFold(c.Name, name) {
			found = append(found, c)
		}
		found = append(found, c.All(name)...)
	}
	return found
}
