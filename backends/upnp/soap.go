package upnp

import (
	"bytes"
	"context"
	"encoding/xml"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxResponseElements is the maximum number of elements in a response.
// Responses of the standard have at most 13.
const maxResponseElements = 256

// soapCall identifies the action to which a response belongs.
type soapCall struct {
	service, action string
	noOutput        bool // the action has no output arguments, so an empty response is a success
}

// soapTransport performs one action over HTTP. It is an http.RoundTripper that
// writes the request in a form that strict devices accept, and rewrites any
// readable response into a form that goupnp reads. It is used once.
type soapTransport struct {
	soapCall
	config ClientConfig
	target ipURL

	status int   // the HTTP status of the response
	err    error // the error of the transport, of which goupnp keeps only the text
}

// RoundTrip sends the body of r as the body of the action.
func (x *soapTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil {
		return nil, err
	}
	// Some devices do not accept newlines between elements. The arguments are
	// ASCII.
	body = append([]byte(`<?xml version="1.0"?>`), bytes.TrimPrefix(body, []byte(xml.Header))...)
	envelope, isFault, err := x.roundTrip(r.Context(), body)
	if err != nil {
		x.err = err
		return nil, err
	}
	status := http.StatusOK
	if isFault {
		status = http.StatusInternalServerError
	}
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(envelope)), ContentLength: int64(len(envelope)), Request: r,
	}, nil
}

// roundTrip performs the action. If the device does not understand the request,
// roundTrip sends the request again in the legacy style. A device that rejects a
// request with such a status and without a fault has not performed the action.
func (x *soapTransport) roundTrip(ctx context.Context, body []byte) (envelope []byte, isFault bool, err error) {
	limit := maxResponse
	if x.action == listAction {
		limit = maxListing
	}
	for _, style := range []requestStyle{modern, legacy} {
		var resp response
		resp, _, err = x.config.send(ctx, x.target, request{
			bytes: x.target.post(style, x.service, x.action, body), limit: limit, root: "Envelope", what: x.action,
		})
		if err != nil {
			return nil, false, err
		}
		x.status = resp.status
		envelope, isFault, err = x.normalise(resp)
		if envelope != nil || err != nil {
			return envelope, isFault, err
		}
		if err = resp.err(); style == legacy || !resp.notUnderstood() {
			return nil, false, err
		}
	}
	return nil, false, err
}

// argumentNames maps the names of the output arguments from lower case to their
// standard form.
var argumentNames = func() map[string]string {
	names := map[string]string{}
	for _, name := range strings.Fields(`
		NewRemoteHost NewExternalPort NewProtocol NewInternalPort NewInternalClient NewEnabled
		NewPortMappingDescription NewLeaseDuration NewReservedPort NewPortListing NewExternalIPAddress
		NewConnectionStatus NewLastConnectionError NewUptime
		FirewallEnabled InboundPinholeAllowed UniqueID IsWorking`) {
		names[strings.ToLower(name)] = name
	}
	return names
}()

// err returns the error for a response without a readable envelope.
func (r response) err() error {
	if r.status/100 != 2 {
		return &HTTPError{Status: r.status}
	}
	return malformed("%d bytes that are not a response", len(r.body))
}

// normalise rewrites a response as SOAP 1.1 in UTF-8, with the prefixes, names
// and structure of the standard. It returns the envelope of a fault or of a
// success, independent of the HTTP status. If the response is neither, the
// envelope is nil. The error wraps backends.ErrMalformed.
func (c soapCall) normalise(resp response) (envelope []byte, isFault bool, err error) {
	limit := maxResponseElements
	if c.action == listAction {
		limit += maxListElements // some devices do not escape the listing
	}
	document, err := parseXML(resp.body, limit)
	if err != nil {
		return nil, false, err
	}
	if result := document.find(c.action + "Response"); result != nil && result.closed {
		return c.successEnvelope(result), false, nil
	}
	if faultElement := findFault(document); faultElement != nil {
		return faultEnvelope(faultElement), true, nil
	}
	if c.noOutput && resp.succeeded() && isEmpty(resp.body, document) {
		return c.successEnvelope(&element{}), false, nil
	}
	return nil, false, nil
}

// isEmpty reports whether a response has no body, or only an empty envelope.
func isEmpty(body []byte, document *element) bool {
	if len(bytes.Trim(body, "\x00 \t\r\n")) == 0 {
		return true
	}
	envelope := document.child("Envelope")
	if envelope == nil || !envelope.closed {
		return false
	}
	b := envelope.child("Body")
	return b != nil && len(b.children) == 0 && b.text == ""
}

// findFault returns the element that contains the details of a fault, with or
// without the elements around it. It returns nil if there is none.
func findFault(document *element) *element {
	if f := document.find("Fault"); f != nil {
		return f
	}
	return document.find("UPnPError")
}

const (
	envelopeStart = `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" ` +
		`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>`
	envelopeEnd = `</s:Body></s:Envelope>`
)

func faultEnvelope(f *element) []byte {
	code, text := 0, ""
	if e := f.find("errorCode"); e != nil {
		n, err := strconv.ParseInt(e.text, 10, 32)
		if err == nil {
			code = int(n)
		}
	}
	for _, name := range []string{"errorDescription", "faultstring"} {
		if e := f.find(name); e != nil && text == "" {
			text = e.text
		}
	}
	var b bytes.Buffer
	b.WriteString(envelopeStart + `<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring>` +
		`<detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0">`)
	writeElement(&b, "errorCode", strconv.Itoa(code))
	writeElement(&b, "errorDescription", text)
	b.WriteString(`</UPnPError></detail></s:Fault>` + envelopeEnd)
	return b.Bytes()
}

func (c soapCall) successEnvelope(response *element) []byte {
	var b bytes.Buffer
	b.WriteString(envelopeStart + `<u:` + c.action + `Response xmlns:u="` + c.service + `">`)
	for _, c := range response.children {
		if name, ok := argumentNames[strings.ToLower(c.name)]; ok {
			writeElement(&b, name, c.content())
		}
	}
	b.WriteString(`</u:` + c.action + `Response>` + envelopeEnd)
	return b.Bytes()
}

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
