package gatewaytest

import (
	"encoding/xml"
	"strings"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// document writes XML: text is escaped, and comes out in the charset of the
// quirks.
type document struct {
	b      strings.Builder
	quirks quirks.XML
	prefix string // of element names, with its colon
}

// open starts an element, with attributes as they are.
func (d *document) open(name, attrs string) { d.b.WriteString("<" + d.prefix + name + attrs + ">") }

func (d *document) close(name string) { d.b.WriteString("</" + d.prefix + name + ">") }

// element writes a whole one.
func (d *document) element(name, text string) {
	d.open(name, "")
	d.b.WriteString(escape(text))
	d.close(name)
}

// title writes an element of text that nobody depends on, which the quirks
// make hard to read.
func (d *document) title(name, text string) {
	d.open(name, "")
	d.b.WriteString(escape(text))
	if d.quirks.Latin1 {
		d.b.WriteString(" f\u00fcr alle")
	}
	if d.quirks.BadUTF8 {
		d.b.WriteString(" \xfc\xff")
	}
	if d.quirks.RawAmpersand {
		d.b.WriteString(" R&D")
	}
	d.close(name)
}

// bytes is the document with its declaration.
func (d *document) bytes() []byte {
	declaration := `<?xml version="1.0"?>`
	if d.quirks.Latin1 {
		declaration = `<?xml version="1.0" encoding="ISO-8859-1"?>`
	}
	if d.quirks.NoDeclaration {
		declaration = ""
	}
	text := declaration + d.b.String()
	if d.quirks.LeadingSpace {
		text = "\r\n " + text
	}
	if d.quirks.BOM {
		text = "\ufeff" + text
	}
	if d.quirks.NULTail {
		text += "\x00\x00"
	}
	if d.quirks.Latin1 {
		text = toLatin1(text)
	}
	return []byte(text)
}

// toLatin1 encodes what ISO-8859-1 has. A byte order mark stays, and so do
// bytes that are not UTF-8.
func toLatin1(text string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == '\ufeff' && i == 0:
			b.WriteRune(r)
		case r == '\ufffd':
			b.WriteByte(text[i])
		case r < 0x100:
			b.WriteByte(byte(r))
		default:
			b.WriteByte('?')
		}
	}
	return b.String()
}

// escape makes text fit for XML.
func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes everything
	return b.String()
}
