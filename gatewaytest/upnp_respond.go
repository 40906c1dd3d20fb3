package gatewaytest

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/natforward/goforward/backends"
)

// identify reads what an HTTP request asks.
func (s *upnpServer) identify(r *httpRequest) Request {
	q := Request{
		Time: s.g.clock.now(), Service: serviceUPnP, Op: OpOther, Source: r.source, Raw: r.raw,
	}
	switch {
	case r.err != nil:
		return q
	case r.method == "GET" && r.target == s.config.Description.Path:
		q.Op = OpDescribe
	case r.method == "POST":
		value, _ := r.header("SOAPAction")
		r.soap.service, r.soap.action = parseAction(value)
		r.soap.args, r.soap.spaced, r.soapErr = parseEnvelope(r.body, r.soap.action)
		q.Action = r.soap.action
		if op, ok := soapOps[q.Action]; ok {
			q.Op = op
		}
		if q.Op == OpMap || q.Op == OpUnmap {
			q.Protocol = r.soap.protocol()
		}
	}
	return q
}

// soapOps are what the actions want.
var soapOps = map[string]Op{
	"GetExternalIPAddress": OpExternalAddr,
	"AddPortMapping":       OpMap, "AddAnyPortMapping": OpMap, "AddPinhole": OpMap, "UpdatePinhole": OpMap,
	"DeletePortMapping": OpUnmap, "DeletePortMappingRange": OpUnmap, "DeletePinhole": OpUnmap,
	"GetStatusInfo": OpStatus, "GetConnectionTypeInfo": OpStatus, "GetNATRSIPStatus": OpStatus,
	"GetFirewallStatus": OpStatus, "GetPinholePackets": OpStatus, "CheckPinholeWorking": OpStatus,
	"GetOutboundPinholeTimeout":   OpStatus,
	"GetSpecificPortMappingEntry": OpLookup, "GetGenericPortMappingEntry": OpList, "GetListOfPortMappings": OpList,
}

// protocol is what the arguments name, or 0.
func (r soapRequest) protocol() backends.Protocol {
	switch name := r.args["NewProtocol"] + r.args["Protocol"]; strings.ToUpper(name) {
	case "TCP", "6":
		return backends.TCP
	case "UDP", "17":
		return backends.UDP
	}
	return 0
}

// errReset is an answer by a reset of the connection, and errCrash by that of
// the service.
var (
	errReset = errors.New("gatewaytest: reset")
	errCrash = errors.New("gatewaytest: crash")
)

// respond does what the request asks and encodes the outcome. Where after is
// not nil, the connection is reset instead, and after called. A refuse other
// than 0 is the fault or status to answer with.
func (s *upnpServer) respond(r *httpRequest, refuse int) (answer []byte, after func()) {
	a, err := s.handle(r, refuse)
	var status statusError
	var fault soapFault
	switch {
	case err == nil:
	case errors.Is(err, errReset):
		return nil, func() {}
	case errors.Is(err, errCrash):
		return nil, s.crash
	case errors.As(err, &fault):
		a = s.failure(fault)
	case errors.As(err, &status):
		a = httpResponse{int(status), []byte("<html><body>" + status.Error() + "</body></html>")}
	default:
		a = s.failure(501)
	}
	return encode(s.config.Wire, a, r.version), nil
}

// handle fails with a statusError, a soapFault, errReset or errCrash.
func (s *upnpServer) handle(r *httpRequest, refuse int) (httpResponse, error) {
	if r.err != nil {
		return httpResponse{}, r.err
	}
	if err := s.checkRequest(r); err != nil {
		return httpResponse{}, err
	}
	switch r.method {
	case "GET":
		switch {
		case refuse != 0:
			return httpResponse{}, statusError(refuse)
		case r.target != s.config.Description.Path:
			return httpResponse{}, statusError(404)
		}
		return httpResponse{200, s.describe(r.base)}, nil
	case "POST":
		v := s.serviceAt(r.target)
		switch _, ok := r.header("SOAPAction"); {
		case v == nil:
			return httpResponse{}, statusError(404)
		case !ok:
			return httpResponse{}, statusError(400)
		case refuse != 0:
			return httpResponse{}, soapFault(refuse)
		}
		out, err := s.call(v, r)
		return s.success(r.soap, out), err
	}
	return httpResponse{}, statusError(501)
}

// checkRequest applies the demands on all requests, and on the headers of actions.
func (s *upnpServer) checkRequest(r *httpRequest) error {
	want := s.config.Demands
	agent, _ := r.header("User-Agent")
	host, _ := r.header("Host")
	switch {
	case want.UserAgent != "" && !strings.Contains(agent, want.UserAgent):
		return statusError(400)
	case want.LiteralHost && !literal(host):
		return statusError(400)
	case r.method == "GET" && want.GetHTTP10 && r.version != "HTTP/1.0":
		return statusError(501)
	case r.method != "POST":
		return nil
	}
	if kind, _ := r.header("Content-Type"); want.ContentType != "" && kind != want.ContentType {
		return statusError(415)
	}
	for i, h := range r.headers {
		switch {
		case !strings.EqualFold(h.name, "SOAPAction"):
		case want.ExactSOAPAction && h.name != "SOAPAction" && h.name != "SOAPACTION":
			return statusError(501)
		case want.QuotedSOAPAction && (len(h.value) < 2 || h.value[0] != '"' || h.value[len(h.value)-1] != '"'):
			return statusError(400)
		case want.SOAPActionNotLast && i == len(r.headers)-1:
			return soapFault(401)
		}
	}
	return nil
}

// literal reports whether a Host is an IP address, with or without a port.
func literal(host string) bool {
	if _, err := netip.ParseAddrPort(host); err == nil {
		return true
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}
