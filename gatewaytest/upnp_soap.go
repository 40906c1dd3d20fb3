package gatewaytest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
)

// maxDepth is the maximum nesting depth of the elements in a request.
const maxDepth = 8

// soapRequest is a SOAP action that a client called.
type soapRequest struct {
	// service and action are from the SOAPAction header.
	service, action string
	args            map[string]string
	// spaced is set if there is white space between elements.
	spaced bool
}

// parseAction parses the value of SOAPAction: "service#action", usually in quotes.
func parseAction(value string) (service, action string) {
	service, action, _ = strings.Cut(strings.Trim(value, `"`), "#")
	return service, action
}

var errNoAction = errors.New("gatewaytest: no SOAP action")

// parseEnvelope parses the arguments of the action in a body. They are the children of
// the element that has the name of the action (UPnP Device Architecture 1.1, section
// 3.2.1).
func parseEnvelope(body []byte, action string) (args map[string]string, spaced bool, err error) {
	args = make(map[string]string)
	in := xml.NewDecoder(bytes.NewReader(body))
	in.Strict = false
	var path []string
	for {
		token, err := in.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, err
		}
		switch x := token.(type) {
		case xml.StartElement:
			path = append(path, x.Name.Local)
			if len(path) > maxDepth {
				return nil, false, errNoAction
			}
			if len(path) == 4 && inAction(path, action) {
				args[path[3]] = ""
			}
		case xml.EndElement:
			path = path[:max(0, len(path)-1)]
		case xml.CharData:
			if len(path) == 4 && inAction(path, action) {
				args[path[3]] += string(x)
			}
			spaced = spaced || 0 < len(path) && len(path) < 4
		}
		if len(path) == 3 && inAction(path, action) {
			args[""] = "" // records that the element of the action is present
		}
	}
	if _, ok := args[""]; !ok {
		return nil, false, errNoAction
	}
	delete(args, "")
	return args, spaced, nil
}

// inAction reports whether the path of an element begins with the element of the
// action.
func inAction(path []string, action string) bool {
	return path[0] == "Envelope" && path[1] == "Body" && path[2] == action
}

// soapArg is an argument in a response.
type soapArg struct{ name, value string }

// soapFault is the code of a UPnPError: the reason why an action failed (UPnP Device
// Architecture 1.1, section 3.2.2).
type soapFault int

func (f soapFault) Error() string {
	return "gatewaytest: fault " + strconv.Itoa(int(f)) + " " + f.text()
}

// faultTexts contains the names of the fault codes that the gateway uses.
var faultTexts = map[soapFault]string{
	401: "Invalid Action", 402: "Invalid Args", 501: "Action Failed", 605: "String Argument Too Long",
	606: "Action not authorized",
	701: "PinholeSpaceExhausted", 702: "FirewallDisabled", 703: "InboundPinholeNotAllowed", 704: "NoSuchEntry",
	705: "ProtocolNotSupported", 706: "InternalPortWildcardingNotAllowed", 707: "ProtocolWildcardingNotAllowed",
	708: "WildCardNotPermittedInSrcIP", 709: "NoTrafficReceived",
	713: "SpecifiedArrayIndexInvalid", 714: "NoSuchEntryInArray", 715: "WildCardNotPermittedInSrcIP",
	716: "WildCardNotPermittedInExtPort", 718: "ConflictInMappingEntry", 724: "SamePortValuesRequired",
	725: "OnlyPermanentLeasesSupported", 726: "RemoteHostOnlySupportsWildcard",
	727: "ExternalPortOnlySupportsWildcard", 728: "NoPortMapsAvailable", 729: "ConflictWithOtherMechanisms",
	730: "PortMappingNotFound", 732: "WildCardNotPermittedInIntPort", 733: "InconsistentParameters",
}

// text returns the description of the fault.
func (f soapFault) text() string {
	if text, ok := faultTexts[f]; ok {
		return text
	}
	return "Vendor Error"
}

const (
	soapNamespace = "http://schemas.xmlsoap.org/soap/envelope/"
	soapEncoding  = "http://schemas.xmlsoap.org/soap/encoding/"
)

// envelope returns a SOAP message. write writes the content of its body.
func (s *upnpServer) envelope(write func(d *document)) []byte {
	d := document{quirks: s.config.XML}
	p := s.soapPrefix()
	d.open(p+"Envelope", ` xmlns:`+strings.TrimSuffix(p, ":")+`="`+soapNamespace+`" `+p+`encodingStyle="`+soapEncoding+`"`)
	d.open(p+"Body", "")
	write(&d)
	d.close(p + "Body")
	d.close(p + "Envelope")
	return d.bytes()
}

// soapPrefix returns the namespace prefix of envelopes, including the colon.
func (s *upnpServer) soapPrefix() string {
	if p := s.config.FaultForm.Prefix; p != "" {
		return p + ":"
	}
	return "s:"
}

// successResponse returns the response to an action that succeeded.
func (s *upnpServer) successResponse(r soapRequest, out []soapArg) httpResponse {
	return httpResponse{200, s.envelope(func(d *document) {
		name := "u:" + r.action + "Response"
		d.open(name, ` xmlns:u="`+escape(r.service)+`"`)
		for _, a := range out {
			if a.name == "NewPortListing" && !s.config.Listing.RangeEscaped {
				// A CDATA section, as miniupnpd writes it: some clients do not unescape
				// the text.
				d.open(a.name, "")
				d.b.WriteString("<![CDATA[" + a.value + "]]>")
				d.close(a.name)
				continue
			}
			d.element(a.name, a.value)
		}
		d.close(name)
	})}
}

// faultResponse returns the response to an action that failed.
func (s *upnpServer) faultResponse(f soapFault) httpResponse {
	form := s.config.FaultForm
	if form.Code != 0 {
		f = soapFault(form.Code)
	}
	names := [2]string{"faultcode", "faultstring"}
	if form.CamelCase {
		names = [2]string{"faultCode", "faultString"}
	}
	p, attr, code := s.soapPrefix(), ` xmlns="urn:schemas-upnp-org:control-1-0"`, strconv.Itoa(int(f))
	inner := ""
	if form.CodePrefix != "" {
		inner, attr = form.CodePrefix+":", strings.Replace(attr, "xmlns", "xmlns:"+form.CodePrefix, 1)
	}
	if form.CodeSpaces {
		code = " " + code + "\t"
	}
	status := 500
	if form.StatusOK {
		status = 200
	}
	return httpResponse{status, s.envelope(func(d *document) {
		d.open(p+"Fault", "")
		d.element(names[0], p+"Client")
		d.element(names[1], "UPnPError")
		d.open("detail", "")
		d.open(inner+"UPnPError", attr)
		d.open(inner+"errorCode", "")
		d.b.WriteString(code) // element would escape white space
		d.close(inner + "errorCode")
		d.freeText(inner+"errorDescription", f.text())
		d.close(inner + "UPnPError")
		d.close("detail")
		d.close(p + "Fault")
	})}
}
