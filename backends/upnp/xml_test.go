package upnp

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
)

// outline writes the elements below e and their texts.
func outline(e *element) string {
	var b strings.Builder
	for _, c := range e.children {
		fmt.Fprintf(&b, "%s(%s%s)", c.name, c.text, outline(c))
	}
	return b.String()
}

// referenceOutline is outline with the parser of package encoding/xml. Its error is
// nil if the document is well-formed.
func referenceOutline(document string) (string, error) {
	d := xml.NewDecoder(strings.NewReader(document))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	open := []*element{{}}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return outline(open[0]), nil
		}
		if err != nil {
			return "", err
		}
		last := open[len(open)-1]
		switch token := token.(type) {
		case xml.StartElement:
			e := &element{name: token.Name.Local}
			last.children = append(last.children, e)
			open = append(open, e)
		case xml.EndElement:
			last.text = strings.TrimSpace(last.content.String())
			open = open[:len(open)-1]
		case xml.CharData:
			last.content.Write(token)
		}
	}
}

var wellFormed = []string{
	rootDesc, strings.ReplaceAll(rootDesc, "\n", "\r\n"), listing, testMappingBody, fault("725"),
	soapResponse("GetExternalIPAddress", elements("NewExternalIPAddress", "203.0.113.7")),
	`<!DOCTYPE a [<!ENTITY b "c"><!ELEMENT d (#PCDATA)>]><a><e/></a>`,
	`<a b='"' c="'" d=">" e='/>' f = "g"><h/> <i j="k"/>l</a >`,
	"<a>&lt;&gt;&amp;&quot;&apos;&#65;&#x42;&#x1F600; &amp;lt; ü <b>\u2028</b>c</a>",
	"<a><![CDATA[<b>&amp;]]]]><![CDATA[></b>]]><!-- <c> --><?d <e> ?>f</a>\n<!-- <g/> -->",
	"<x:a xmlns:x='http://y/'><x:b x:c='d'\n>e</x:b\t></x:a>",
}

// TestWellFormed checks that well-formed documents have the same elements and texts
// as with package encoding/xml.
func TestWellFormed(t *testing.T) {
	for _, document := range wellFormed {
		want, err := referenceOutline(document)
		if err != nil {
			t.Fatalf("%s: %v", document, err)
		}
		got, err := parseXML([]byte(document), 1000)
		if err != nil || outline(got) != want {
			t.Errorf("%s:\n%s, %v; want\n%s", document, outline(got), err, want)
		}
	}
}

// TestNotWellFormed checks that an error in a document does not change what follows.
func TestNotWellFormed(t *testing.T) {
	const rest = "<c>1</c></r>"
	for in, want := range map[string]string{
		`<UPnPErrorxmlns="u">x</UPnPError>`:         "UPnPError(x)",
		`<s:UPnPErrorxmlns:s="u/v">x</s:UPnPError>`: "UPnPError(x)",
		`<b><!-- a -- b -->x</b>`:                   "b(x)",
		`<b><? echo ?>x</b>`:                        "b(x)",
		`<b>]]>x</b>`:                               "b(]]>x)",
		`<b a="<">x</b>`:                            "b(x)",
		`<b a="<i>">x</b>`:                          "b(x)",
		`< b>x</b >`:                                "b(x)",
		"<\n b a=\"c\">x< /b>":                      "b(x)",
		`< b /><b/ >`:                               "b()b()",
		`<b>R&D & &; &unknown; &#; &#x; &#xg; &#99x; <3</b>`: "b(R&D & &; &unknown; &#; &#x; &#xg; &#99x; <3)",
		`<b>&#x110000;&#xD800;&#9999999999;</b>`:             "b(\ufffd\ufffd\ufffd)",
		`<b>a < c and d<e</b>`:                               "b(a < c and d<e)",
		`<b a="1" a="2" c d=e f=g/>`:                         "b()",
		`<b a="1>x</b>`:                                      "b(x)",
		`<b a='1>x</b><d e='2'>y</d>`:                        "b(x)d(y)",
		`<b a="1><d e="2">x</d></b>`:                         "b(d(x))",
		`<b a=it's>x</b>`:                                    "b(x)",
		`<b a=">">x</b>`:                                     "b(x)",
		`<b>x</b</b>`:                                        "b(x</b)",
		`<!DOCTYPE>`:                                         "",
		`<!DOCTYPE html PUBLIC "-//W3C//DTD" "http://x/">`:   "",
		`<!doctype r SYSTEM 'x.dtd' [ <!ENTITY a SYSTEM "file:///etc/passwd"> ] >`: "",
		`<!ENTITY lol "lol"><b>&lol;</b>`:                                          "b(&lol;)",
		`<b><![CDATA[x</b>`:                                                        "b(x)",
		`<b><![cdata[x]]></b>`:                                                     "b()",
		`<b>x<!-- </b>`:                                                            "b(x<!--)",
		`<b>x<!-- -></b>`:                                                          "b(x)",
		`<b><?php></b>`:                                                            "b()",
		`</a></b><b></d>x</b>`:                                                     "b(x)",
		`<b>x<d>y</b>`:                                                             "b(xd(y))",
		`<B>x</b>`:                                                                 "B(x)",
		`<></><b>x</b>`:                                                            "b(x)",
		"<b>x\x00\x01\xfcy</b>":                                                    "b(xüy)",
	} {
		document, err := parseXML([]byte("\ufeff <?xml version='1.0' encoding='x'?><r>"+in+rest), 100)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if r := document.at("r"); len(r) != 1 || outline(r[0]) != want+"c(1)" || !r[0].closed {
			t.Errorf("%s: %s, want %s", in, outline(document), want)
		}
	}
}

// TestParserBombs checks documents that consist of the start of one construct, on which
// a careless parser needs quadratic time.
func TestParserBombs(t *testing.T) {
	for _, unit := range []string{
		"<", "< ", "&", "&#", "<!--", "<!-- -", "<?", "<![CDATA[", "<![CDATA[]]", "<!", "<!DOCTYPE a [", "<a ", "</", "</a", "<a b=\"", "<a b='\"",
		`<a " b="<a "`, `"<a b=">`, `<a b="><`, "\"'", "&lt", "<a", "<a/", "]]>", "-->", "\x00", "\xff", "</r>",
	} {
		for _, start := range []string{"<r>", "<r a=\""} {
			document := []byte(start + strings.Repeat(unit, maxResponse/2/len(unit)))
			if _, err := parseXML(document, 100); err != nil && !errors.Is(err, backends.ErrMalformed) {
				t.Errorf("%q, %q: %v", start, unit, err)
			}
		}
	}
}

// FuzzParseXML checks that parsing stops within its limits, that no text is longer
// than the document, and that a well-formed document has the same elements and texts
// as with package encoding/xml.
func FuzzParseXML(f *testing.F) {
	for _, seed := range wellFormed {
		f.Add([]byte(seed))
	}
	for _, seed := range []string{`<UPnPErrorxmlns="u">`, `<a b="><c d="e">`, "< a>< /a>", "<![CDATA[", "<!-- -- -->", "<? echo ?>", "&#0;&a;", "\xff<"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		document, err := parseXML(b, 50)
		if err != nil {
			if !errors.Is(err, backends.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		elements := 0
		var check func(e *element, depth int) (size int)
		check = func(e *element, depth int) int {
			size := len(e.text)
			for _, c := range e.children {
				elements++
				size += check(c, depth+1)
				if depth > maxDepth || e.closed && !c.closed || !c.closed && c.text != "" || strings.ContainsAny(c.name, "/= \t\n:") {
					t.Fatalf("%+v at depth %d", c, depth)
				}
			}
			return size
		}
		if size := check(document, 0); size > 2*len(b) || elements > 50 {
			t.Fatalf("%d bytes of text and %d elements from %d bytes", size, elements, len(b))
		}
		// Package encoding/xml does not read the entities of a DTD, keeps carriage returns
		// as line feeds, and accepts names with a colon at an end.
		if want, err := referenceOutline(string(b)); err == nil && !bytes.ContainsAny(b, "\r") && !bytes.Contains(b, []byte("<!")) {
			if got := outline(document); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		}
	})
}
