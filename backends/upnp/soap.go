package upnp

import (
	"bytes"
	"context"
	"encoding/xml"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxAnswerElements bounds the elements of an answer; none of the standard has
// more than 13.
const maxResponseElements = 256

// question is the action that an answer belongs to.
type soapCall struct {
	service, action string
	noOutput        bool // nothing is to come back: an empty answer is a success
}

// exchange is one action over HTTP: an http.RoundTripper that writes the
// request as picky devices want it and turns any readable answer into what
// goupnp reads. It is used once.
type soapTransport struct {
	soapCall
	config   ClientConfig
	endpoint endpoint

	status int   // of the answer
	err    error // what went wrong, which goupnp keeps the text of only
}

// RoundTrip sends the request's body as the action's.
func (x *soapTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil {
		return nil, err
	}
	// Newlines between elements are too much for some devices, and the
	// arguments are ASCII.
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

// ask performs the action, twice where the first form of the request was not
// understood: no fault came with the status, so nothing was done.
func (x *soapTransport) roundTrip(ctx context.Context, body []byte) (envelope []byte, isFault bool, err error) {
	limit := maxResponse
	if x.action == listAction {
		limit = maxListing
	}
	for _, style := range []requestStyle{modern, legacy} {
		var resp response
		resp, _, err = x.config.send(ctx, x.endpoint, request{
			bytes: x.endpoint.post(style, x.service, x.action, body), limit: limit, root: "Envelope", what: x.action,
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

// canonical maps the arguments that are read, in lower case, to their names.
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

// err is what is wrong with an answer that holds nothing readable.
func (r response) err() error {
	if r.status/100 != 2 {
		return &HTTPError{Status: r.status}
	}
	return malformed("%d bytes that are no answer", len(r.body))
}

// normalise rewrites an answer as SOAP 1.1 has it, in UTF-8, with the
// standard's prefixes, names and shape: the envelope of a fault, or of a
// success, whatever the HTTP status says. An answer that is neither has no
// envelope. The error wraps backends.ErrMalformed.
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
