package upnp

import (
	"bytes"
	"strconv"
	"strings"
)

// maxAnswerElements bounds the elements of an answer; none of the standard has
// more than 13.
const maxAnswerElements = 256

// canonical maps the arguments that are read, in lower case, to their names.
var canonical = func() map[string]string {
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

// question is the action that an answer belongs to.
type question struct {
	service, action string
	silent          bool // nothing is to come back: an empty answer is a success
}

// normalise rewrites an answer as SOAP 1.1 has it, in UTF-8, with the
// standard's prefixes, names and shape: the envelope of a fault, or of a
// success, whatever the HTTP status says. An answer that is neither has no
// envelope. The error wraps backends.ErrMalformed.
func (q question) normalise(a answer) (envelope []byte, isFault bool, err error) {
	limit := maxAnswerElements
	if q.action == listAction {
		limit += maxListElements // some devices do not escape the listing
	}
	document, err := parseXML(a.body, limit)
	if err != nil {
		return nil, false, err
	}
	if r := document.find(q.action + "Response"); r != nil && r.closed {
		return q.successEnvelope(r), false, nil
	}
	if f := findFault(document); f != nil {
		return faultEnvelope(f), true, nil
	}
	if q.silent && a.ok() && isEmpty(a.body, document) {
		return q.successEnvelope(&element{}), false, nil
	}
	return nil, false, nil
}

// isEmpty reports an answer without a word: no body, or an envelope around
// nothing.
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

// findFault returns the element that holds a fault's details, with or without
// what belongs around them, or nil.
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
	write(&b, "errorCode", strconv.Itoa(code))
	write(&b, "errorDescription", text)
	b.WriteString(`</UPnPError></detail></s:Fault>` + envelopeEnd)
	return b.Bytes()
}

func (q question) successEnvelope(response *element) []byte {
	var b bytes.Buffer
	b.WriteString(envelopeStart + `<u:` + q.action + `Response xmlns:u="` + q.service + `">`)
	for _, c := range response.children {
		if name, ok := canonical[strings.ToLower(c.name)]; ok {
			write(&b, name, c.content())
		}
	}
	b.WriteString(`</u:` + q.action + `Response>` + envelopeEnd)
	return b.Bytes()
}
