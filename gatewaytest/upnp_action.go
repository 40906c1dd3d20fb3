package gatewaytest

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// identify parses an HTTP request into a Request.
func (s *upnpServer) identify(r *httpRequest) Request {
	q := Request{
		Time: s.g.clock.now(), Service: serviceUPnP, Op: opOther, Source: r.source, Raw: r.raw,
	}
	switch {
	case r.err != nil:
		return q
	case r.method == "GET" && r.target == s.config.Description.Path:
		q.Op = opDescribe
	case r.method == "SUBSCRIBE":
		q.Op = opSubscribe
	case r.method == "UNSUBSCRIBE":
		q.Op = opUnsubscribe
	case r.method == "POST":
		value, _ := r.header("SOAPAction")
		r.soap.service, r.soap.action = parseAction(value)
		r.soap.args, r.soap.spaced, r.soapErr = parseEnvelope(r.body, r.soap.action)
		q.Action = r.soap.action
		if op, ok := soapOps[q.Action]; ok {
			q.Op = op
		}
		if q.Op == opMap || q.Op == opUnmap {
			q.Protocol = r.soap.protocol()
		}
	}
	return q
}

// soapOps maps actions to the values of Request.Op.
var soapOps = map[string]string{
	"GetExternalIPAddress": opExternalAddr,
	"AddPortMapping":       opMap, "AddAnyPortMapping": opMap, "AddPinhole": opMap, "UpdatePinhole": opMap,
	"DeletePortMapping": opUnmap, "DeletePortMappingRange": opUnmap, "DeletePinhole": opUnmap,
	"GetStatusInfo": opStatus, "GetConnectionTypeInfo": opStatus, "GetNATRSIPStatus": opStatus,
	"GetFirewallStatus": opStatus, "GetPinholePackets": opStatus, "CheckPinholeWorking": opStatus,
	"GetOutboundPinholeTimeout":   opStatus,
	"GetSpecificPortMappingEntry": opLookup, "GetGenericPortMappingEntry": opList, "GetListOfPortMappings": opList,
}

// protocol returns the protocol that the arguments name, or 0.
func (r soapRequest) protocol() backends.Protocol {
	switch name := r.args["NewProtocol"] + r.args["Protocol"]; strings.ToUpper(name) {
	case "TCP", "6":
		return backends.TCP
	case "UDP", "17":
		return backends.UDP
	}
	return 0
}

// errReset resets the connection instead of sending a response. errSimulatedCrash also
// makes the service crash. errHang leaves the connection open without a response.
var (
	errReset          = errors.New("gatewaytest: connection reset")
	errSimulatedCrash = errors.New("gatewaytest: simulated crash")
	errHang           = errors.New("gatewaytest: no response")
)

// respond executes the request and encodes the response. If end is not nil, the caller
// calls it instead of sending a response, and then closes the connection. If forcedResult
// is not 0, the request is not executed, and the response has that fault code or HTTP
// status.
func (s *upnpServer) respond(r *httpRequest, forcedResult int) (raw []byte, end func(*net.TCPConn)) {
	response, err := s.handle(r, forcedResult)
	var status statusError
	var fault soapFault
	switch {
	case err == nil:
	case errors.Is(err, errReset):
		return nil, func(c *net.TCPConn) { _ = c.SetLinger(0) } // the connection will be closed with a reset
	case errors.Is(err, errSimulatedCrash):
		return nil, func(c *net.TCPConn) { _ = c.SetLinger(0); s.closePorts(true) }
	case errors.Is(err, errHang):
		return nil, hang
	case errors.As(err, &fault):
		response = s.faultResponse(fault)
	case errors.As(err, &status):
		response = htmlPage(int(status))
	default:
		response = s.faultResponse(501)
	}
	if actionQuirk(s.config.Actions.NoReply, r.soap.action) {
		return nil, nil
	}
	return encodeHTTP(s.config.Wire, response, r.version), nil
}

// htmlPage returns an HTML page with this status.
func htmlPage(status int) httpResponse {
	return httpResponse{status: status, body: []byte("<html><body>" + statusError(status).Error() + "</body></html>")}
}

// actionQuirk returns the value of a field of quirks.Actions for an action. If the
// request is not a SOAP action, it returns the zero value.
func actionQuirk[T any](field map[string]T, action string) (value T) {
	if action == "" {
		return value
	}
	if own, ok := field[action]; ok {
		return own
	}
	return field[""]
}

// actionError returns the error of an action that a quirk prevents.
func (s *upnpServer) actionError(action string) error {
	rules := s.config.Actions
	switch fault := actionQuirk(rules.Fault, action); {
	case actionQuirk(rules.Hang, action):
		return errHang
	case actionQuirk(rules.Reset, action):
		return errReset
	case fault != 0:
		return soapFault(fault)
	}
	return nil
}

// handle executes the request. It fails with a statusError, a soapFault, errReset,
// errSimulatedCrash or errHang.
func (s *upnpServer) handle(r *httpRequest, forcedResult int) (httpResponse, error) {
	if r.err != nil {
		return httpResponse{}, r.err
	}
	if err := s.checkRequest(r); err != nil {
		return httpResponse{}, err
	}
	switch r.method {
	case "GET":
		switch {
		case forcedResult != 0:
			return httpResponse{}, statusError(forcedResult)
		case r.target != s.config.Description.Path:
			return httpResponse{}, statusError(404)
		}
		return s.describe(r.base)
	case "POST":
		v := s.serviceAt(r.target)
		switch _, ok := r.header("SOAPAction"); {
		case v == nil:
			return httpResponse{}, statusError(404)
		case !ok:
			return httpResponse{}, statusError(400)
		case forcedResult != 0:
			return httpResponse{}, soapFault(forcedResult)
		}
		if err := s.actionError(r.soap.action); err != nil {
			return httpResponse{}, err
		}
		out, err := s.call(v, r)
		return s.successResponse(r.soap, out), err
	case "SUBSCRIBE", "UNSUBSCRIBE":
		if forcedResult != 0 {
			return httpResponse{}, statusError(forcedResult)
		}
		return s.handleEvents(r)
	}
	return httpResponse{}, statusError(501)
}

// checkRequest checks the quirks.Demands on all requests, and on the headers of actions.
func (s *upnpServer) checkRequest(r *httpRequest) error {
	demands := s.config.Demands
	agent, _ := r.header("User-Agent")
	host, _ := r.header("Host")
	switch {
	case demands.UserAgent != "" && !strings.Contains(agent, demands.UserAgent):
		return statusError(400)
	case demands.LiteralHost && !literal(host):
		return statusError(400)
	case r.method == "GET" && demands.GetHTTP10 && r.version != "HTTP/1.0":
		return statusError(501)
	case r.method != "POST":
		return nil
	}
	if kind, _ := r.header("Content-Type"); demands.ContentType != "" && kind != demands.ContentType {
		return statusError(415)
	}
	for i, h := range r.headers {
		switch {
		case !strings.EqualFold(h.name, "SOAPAction"):
		case demands.ExactSOAPAction && h.name != "SOAPAction" && h.name != "SOAPACTION":
			return statusError(501)
		case demands.QuotedSOAPAction && (len(h.value) < 2 || h.value[0] != '"' || h.value[len(h.value)-1] != '"'):
			return statusError(400)
		case demands.SOAPActionNotLast && i == len(r.headers)-1:
			return soapFault(401)
		}
	}
	return nil
}

// literal reports whether a Host header is an IP address, with or without a port.
func literal(host string) bool {
	if _, err := netip.ParseAddrPort(host); err == nil {
		return true
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}

// soapCall is a call of an action, with its arguments and its client. The methods that
// parse arguments set err to fault 402 if an argument is malformed.
type soapCall struct {
	service *igdService
	args    map[string]string
	client  netip.Addr
	err     error
}

// soapAction performs an action. It fails with a soapFault, errReset or
// errSimulatedCrash.
type soapAction func(*upnpServer, *soapCall) ([]soapArg, error)

// connectionActions are the actions of WANIPConnection and WANPPPConnection.
var connectionActions = map[string]soapAction{
	"AddPortMapping":              (*upnpServer).addPortMapping,
	"DeletePortMapping":           (*upnpServer).deletePortMapping,
	"GetSpecificPortMappingEntry": (*upnpServer).specificEntry,
	"GetGenericPortMappingEntry":  (*upnpServer).genericEntry,
	"GetExternalIPAddress":        (*upnpServer).externalAddress,
	"GetStatusInfo":               (*upnpServer).statusInfo,
	"GetConnectionTypeInfo":       (*upnpServer).connectionType,
	"GetNATRSIPStatus":            (*upnpServer).natStatus,
}

// connectionActions2 are the additional actions of WANIPConnection:2.
var connectionActions2 = map[string]soapAction{
	"AddAnyPortMapping":      (*upnpServer).addAnyPortMapping,
	"DeletePortMappingRange": (*upnpServer).deleteRange,
	"GetListOfPortMappings":  (*upnpServer).listRange,
}

// otherActions are the actions of the services that have only one version.
var otherActions = map[serviceKind]map[string]soapAction{
	layer3Forwarding: {"GetDefaultConnectionService": (*upnpServer).defaultConnection},
	wanCommon:        {"GetCommonLinkProperties": (*upnpServer).linkProperties},
	ipv6Firewall: {
		"GetFirewallStatus":   (*upnpServer).firewallStatus,
		"AddPinhole":          (*upnpServer).addPinhole,
		"UpdatePinhole":       (*upnpServer).updatePinhole,
		"DeletePinhole":       (*upnpServer).deletePinhole,
		"GetPinholePackets":   (*upnpServer).pinholePackets,
		"CheckPinholeWorking": (*upnpServer).checkPinhole,
		"GetOutboundPinholeTimeout": func(*upnpServer, *soapCall) ([]soapArg, error) {
			return nil, soapFault(501)
		},
	},
}

// call performs an action of a service.
func (s *upnpServer) call(v *igdService, r *httpRequest) ([]soapArg, error) {
	perform := s.findAction(v, r.soap.action)
	switch {
	case perform == nil || !compatibleType(v.typ, r.soap.service):
		return nil, soapFault(401)
	case r.soapErr != nil, r.soap.spaced && s.config.Demands.Compact:
		return nil, soapFault(402)
	}
	return perform(s, &soapCall{service: v, args: r.soap.args, client: r.source.Addr()})
}

// findAction returns the function that performs the action, or nil.
func (s *upnpServer) findAction(v *igdService, action string) soapAction {
	if v.kind != wanIP && v.kind != wanPPP {
		return otherActions[v.kind][action]
	}
	if perform := connectionActions[action]; perform != nil {
		return perform
	}
	if v.kind == wanIP && s.config.Version == 2 {
		return connectionActions2[action]
	}
	return nil
}

// compatibleType reports whether a client can use a service or device of type available
// as the type requested. The types must be the same, and the requested version must not
// be higher.
func compatibleType(available, requested string) bool {
	availableName, availableVersion := cutVersion(available)
	name, version := cutVersion(requested)
	return name == availableName && 1 <= version && version <= availableVersion
}

// cutVersion splits the version off a device or service type. The version is 0 if there
// is none.
func cutVersion(urn string) (name string, version int) {
	i := strings.LastIndexByte(urn, ':')
	version, err := strconv.Atoi(urn[i+1:])
	if err != nil {
		return urn, 0
	}
	return urn[:max(i, 0)], version
}

// number parses an unsigned argument of the given number of bits.
func (c *soapCall) number(name string, bits int) uint64 {
	n, err := strconv.ParseUint(strings.TrimSpace(c.args[name]), 10, bits)
	if err != nil {
		c.err = soapFault(402)
	}
	return n
}

// number16 parses an unsigned argument of 16 bits, such as a port.
func (c *soapCall) number16(name string) uint16 { return uint16(c.number(name, 16)) }

// flag parses a boolean argument, including the forms yes and no (UPnP Device
// Architecture 1.1, section 2.5).
func (c *soapCall) flag(name string) bool {
	switch strings.ToLower(strings.TrimSpace(c.args[name])) {
	case "1", "true", "yes":
		return true
	case "0", "false", "no":
	default:
		c.err = soapFault(402)
	}
	return false
}

// protocolArg parses the protocol of a mapping.
func (s *upnpServer) protocolArg(c *soapCall) backends.Protocol {
	name := c.args["NewProtocol"]
	if !s.config.Demands.UpperProtocol {
		name = strings.ToUpper(name)
	}
	switch name {
	case "TCP":
		return backends.TCP
	case "UDP":
		return backends.UDP
	}
	c.err = soapFault(402)
	return 0
}

// remoteHostArg parses the remote host that a mapping admits. The zero Addr means any
// host.
func (s *upnpServer) remoteHostArg(c *soapCall) (addr netip.Addr) {
	text, present := c.args["NewRemoteHost"]
	switch demands := s.config.Demands; {
	case !present && demands.RemoteHost, text == "0.0.0.0" && demands.NoZeroRemoteHost:
		c.err = soapFault(402)
	case text != "" && text != "*" && text != "0.0.0.0":
		if addr, _ = netip.ParseAddr(text); !addr.Is4() {
			c.err = soapFault(402)
		}
	}
	return addr
}

// filtersFor returns the filters that admit only this remote host and port. The zero
// Addr means any host, and port 0 means any port.
func filtersFor(remote netip.Addr, port uint16) []pcp.Filter {
	switch {
	case remote.IsValid():
		return []pcp.Filter{{Prefix: netip.PrefixFrom(remote, remote.BitLen()), Port: port}}
	case port != 0:
		return []pcp.Filter{{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Port: port}}
	}
	return nil
}

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
	return cmp.Or(faultTexts[f], "Vendor Error")
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
	return cmp.Or(s.config.FaultForm.Prefix, "s") + ":"
}

// successResponse returns the response to an action that succeeded.
func (s *upnpServer) successResponse(r soapRequest, out []soapArg) httpResponse {
	return httpResponse{status: 200, body: s.envelope(func(d *document) {
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
	f = cmp.Or(soapFault(form.Code), f)
	p, attr := s.soapPrefix(), ` xmlns="urn:schemas-upnp-org:control-1-0"`
	inner := ""
	if form.CodePrefix != "" {
		inner, attr = form.CodePrefix+":", strings.Replace(attr, "xmlns", "xmlns:"+form.CodePrefix, 1)
	}
	if s.config.XML.GluedNamespace {
		attr = strings.TrimSpace(attr)
	}
	return httpResponse{status: choose(form.StatusOK, 200, 500), body: s.envelope(func(d *document) {
		d.open(p+"Fault", "")
		d.element(choose(form.CamelCase, "faultCode", "faultcode"), p+"Client")
		d.element(choose(form.CamelCase, "faultString", "faultstring"), "UPnPError")
		d.open("detail", "")
		d.open(inner+"UPnPError", attr)
		d.open(inner+"errorCode", "")
		fmt.Fprintf(&d.b, choose(form.CodeSpaces, " %d\t", "%d"), int(f)) // element would escape white space
		d.close(inner + "errorCode")
		d.freeText(inner+"errorDescription", f.text())
		d.close(inner + "UPnPError")
		d.close("detail")
		d.close(p + "Fault")
	})}
}
