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
	config   ClientConfig
	endpoint endpoint

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
