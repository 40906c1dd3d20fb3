package upnp_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// wireQuirks returns gateways with the reading and writing quirks of real ones.
func wireQuirks() map[string]quirks.UPnP {
	type router = quirks.UPnP
	type description = quirks.Description
	type wire = quirks.Wire
	type demands = quirks.Demands
	type form = quirks.XML
	strict := demands{
		ExactSOAPAction: true, QuotedSOAPAction: true, SOAPActionNotLast: true, ContentType: `text/xml; charset="utf-8"`,
		LiteralHost: true, Compact: true, RemoteHost: true, NoZeroRemoteHost: true, UpperProtocol: true,
		BlankDescription: 402, OddDescription: 402, LongDescription: 501, MaxDescription: 63,
	}
	return map[string]router{
		"URLBase empty":                    {Description: description{URLBase: quirks.URLBaseEmpty}},
		"URLBase good":                     {Description: description{URLBase: quirks.URLBaseGood}},
		"URLBase on another host":          {Description: description{URLBase: quirks.URLBaseWrongHost}},
		"URLBase without port":             {Description: description{URLBase: quirks.URLBaseNoPort}},
		"absolute control URL":             {Description: description{ControlURL: quirks.ControlAbsolute}},
		"relative control URL":             {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlRelative}},
		"control URL relative to the root": {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlRelativeToRoot}},
		"control URL with a colon":         {Description: description{ControlURL: quirks.ControlColon}},
		"control URL with white space":     {Description: description{ControlURL: quirks.ControlSpaces}},
		"control URL on another host":      {Description: description{ControlURL: quirks.ControlWrongHost}},
		"control URL with a query only":    {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlQuery}},
		"control URL with ..":              {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlParent}},
		"control URL with .":               {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlDot}},
		"control URL without scheme":       {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlSchemeRelative}},
		"control URL with host and port":   {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlHostPort}},
		"URLBase with a name":              {Description: description{URLBase: quirks.URLBaseName, ControlURL: quirks.ControlRelativeToRoot}},
		"URLBase with an old address":      {Description: description{URLBase: quirks.URLBaseOldHost}},
		"URLBase with a path":              {Description: description{Path: "/a/b.xml", URLBase: quirks.URLBaseDeep}},
		"URLBase with a path, and a query": {Description: description{Path: "/a/b.xml", URLBase: quirks.URLBaseDeep, ControlURL: quirks.ControlQuery}},
		"first requests reset and busy":    {Description: description{FirstReset: 1, FirstStatus: 1}},
		"HTTP/1.0":                         {Wire: wire{HTTP10: true}},
		"no length":                        {Wire: wire{NoLength: true}},
		"chunked":                          {Wire: wire{Chunked: true}},
		"length too short":                 {Wire: wire{LengthOff: -3}},
		"length too long":                  {Wire: wire{LengthOff: 30, LeaveOpen: true}},
		"line feeds":                       {Wire: wire{LFOnly: true}},
		"no space":                         {Wire: wire{NoSpace: true}},
		"no reason":                        {Wire: wire{NoReason: true}},
		"left open":                        {Wire: wire{LeaveOpen: true, NoLength: true}},
		"Latin 1":                          {XML: form{Latin1: true}},
		"invalid UTF-8":                    {XML: form{BadUTF8: true}},
		"unescaped &":                      {XML: form{RawAmpersand: true}},
		"a byte order mark":                {XML: form{BOM: true}},
		"leading white space":              {XML: form{LeadingSpace: true}},
		"no declaration":                   {XML: form{NoDeclaration: true}},
		"trailing NUL":                     {XML: form{NULTail: true}},
		"prefixes":                         {XML: form{Prefix: "d"}},
		"no namespace":                     {XML: form{NoNamespace: true}},
		"glued namespace":                  {XML: form{GluedNamespace: true}},
		"-- in a comment":                  {XML: form{CommentDashes: true}},
		"invalid processing instruction":   {XML: form{EchoPI: true}},
		"]]> in a text":                    {XML: form{TextCDATAEnd: true}},
		"< in an attribute":                {XML: form{AttrLess: true}},
		"space in tags":                    {XML: form{SpacedTag: true}},
		"HTTP1.1":                          {Wire: wire{Version: "HTTP1.1"}},
		"http/1.1":                         {Wire: wire{Version: "http/1.1"}},
		"SOAPAction in exact case":         {Demands: demands{ExactSOAPAction: true}},
		"SOAPAction quoted":                {Demands: demands{QuotedSOAPAction: true}},
		"SOAPAction not last":              {Demands: demands{SOAPActionNotLast: true}},
		"Content-Type":                     {Demands: demands{ContentType: `text/xml; charset="utf-8"`}},
		"Host as an address":               {Demands: demands{LiteralHost: true}},
		"GET in HTTP/1.0":                  {Demands: demands{GetHTTP10: true}},
		"compact":                          {Demands: demands{Compact: true}},
		"remote host required":             {Demands: demands{RemoteHost: true}},
		"remote host not 0.0.0.0":          {Demands: demands{NoZeroRemoteHost: true}},
		"protocol in upper case":           {Demands: demands{UpperProtocol: true}},
		"all demands":                      {Demands: strict},
		"several quirks": {
			Version: 1, Demands: strict, Wire: wire{HTTP10: true, NoLength: true, LFOnly: true, NoSpace: true, NoReason: true},
			XML:         form{Latin1: true, LeadingSpace: true, NULTail: true, Prefix: "x", NoNamespace: true},
			Description: description{URLBase: quirks.URLBaseWrongHost, ControlURL: quirks.ControlSpaces, DSLForum: true},
			FaultForm:   quirks.FaultForm{Prefix: "SOAP", CamelCase: true, CodeSpaces: true, StatusOK: true},
		},
	}
}

// TestWireQuirks checks that all operations work with each of these gateways.
func TestWireQuirks(t *testing.T) {
	t.Parallel()
	for name, router := range wireQuirks() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: router}})
			// newBackend sets a timeout of 5 s, so that a quirk that makes the
			// backend wait for its timeout is noticed.
			b := newBackend(t, gw, upnp.Config{})
			r := request(8080, 9000)
			r.Description = "  " + strings.Repeat("\"x\" & <y> ü ", 20)
			m := mustMap(t, gw, b, r)
			if m.External != netip.AddrPortFrom(gw.External(), 9000) {
				t.Errorf("mapped %v", m.External)
			}
			m = mustRenew(t, gw, b, m, r)
			rows := 0
			for e, err := range b.List(t.Context()) {
				if rows++; err != nil || e.Mapping.External != m.External {
					t.Errorf("listed %v, %v", e.Mapping.External, err)
				}
			}
			if rows != 1 {
				t.Errorf("listed %d rows", rows)
			}
			if err := b.Unmap(t.Context(), m); err != nil || len(gw.Table()) != 0 {
				t.Errorf("Unmap: %v, the gateway has %v", err, gw.Table())
			}
		})
	}
}

// TestFaultForms checks that a fault is recognised in all forms.
func TestFaultForms(t *testing.T) {
	t.Parallel()
	type form = quirks.FaultForm
	for name, tt := range map[string]struct {
		form form
		xml  quirks.XML
		code upnp.FaultCode
		want error
	}{
		"SOAP-ENV":        {form{Prefix: "SOAP-ENV"}, quirks.XML{}, 606, backends.ErrNotAuthorized},
		"SOAP":            {form{Prefix: "SOAP"}, quirks.XML{}, 606, backends.ErrNotAuthorized},
		"camel case":      {form{CamelCase: true}, quirks.XML{}, 606, backends.ErrNotAuthorized},
		"prefixed code":   {form{CodePrefix: "e"}, quirks.XML{}, 606, backends.ErrNotAuthorized},
		"blanks":          {form{CodeSpaces: true}, quirks.XML{}, 606, backends.ErrNotAuthorized},
		"status 200":      {form{StatusOK: true}, quirks.XML{}, 606, backends.ErrNotAuthorized},
		"vendor's":        {form{Code: -911}, quirks.XML{}, -911, backends.ErrNoResources},
		"Latin 1":         {form{}, quirks.XML{Latin1: true}, 606, backends.ErrNotAuthorized},
		"invalid UTF-8":   {form{}, quirks.XML{BadUTF8: true}, 606, backends.ErrNotAuthorized},
		"unescaped &":     {form{}, quirks.XML{RawAmpersand: true}, 606, backends.ErrNotAuthorized},
		"glued namespace": {form{}, quirks.XML{GluedNamespace: true}, 606, backends.ErrNotAuthorized},
		"invalid markup":  {form{}, quirks.XML{CommentDashes: true, EchoPI: true, TextCDATAEnd: true, AttrLess: true, SpacedTag: true}, 606, backends.ErrNotAuthorized},
		"several forms":   {form{Prefix: "SOAP-ENV", CamelCase: true, CodePrefix: "q", CodeSpaces: true, StatusOK: true}, quirks.XML{BadUTF8: true, NULTail: true}, 606, backends.ErrNotAuthorized},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, b := startBackend(t, quirks.UPnP{FaultForm: tt.form, XML: tt.xml, Rules: quirks.Rules{SwitchedOff: true}})
			_, err := b.Map(t.Context(), request(8080, 9000))
			wantError(t, err, tt.want, tt.code)
		})
	}
}

// TestLegacyHeaders checks that a device that rejects the default request gets one
// with legacy headers.
func TestLegacyHeaders(t *testing.T) {
	t.Parallel()
	gw, b := startBackend(t, quirks.UPnP{})
	gw.Inject(gatewaytest.Fault{
		Match: func(q gatewaytest.Request) bool {
			return q.Service == "upnp" && strings.Contains(string(q.Raw), "User-Agent:")
		},
		Reply: func([]byte) [][]byte {
			return [][]byte{[]byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")}
		},
	})
	mustMap(t, gw, b, request(8080, 9000))
}

// TestControlEmpty checks that a device without a control URL is not a gateway.
func TestControlEmpty(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Description: quirks.Description{ControlURL: quirks.ControlEmpty}}}})
	err := newBackend(t, gw, upnp.Config{Wait: searchWait / 2}).Probe(t.Context())
	if wantError(t, err, backends.ErrNoReply, 0); err != nil && !strings.Contains(err.Error(), `device "Test router" is not a gateway`) {
		t.Error(err)
	}
}

// TestGatewayDescriptionFails checks that an error of the gateway's own description
// is returned.
func TestGatewayDescriptionFails(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault gatewaytest.Fault
		want  error
	}{
		"not found":         {gatewaytest.Fault{Reply: func([]byte) [][]byte { return [][]byte{[]byte("HTTP/1.1 404 Not Found\r\n\r\n")} }}, backends.ErrMalformed},
		"password required": {gatewaytest.Fault{Reply: func([]byte) [][]byte { return [][]byte{[]byte("HTTP/1.1 401 Unauthorized\r\n\r\n")} }}, backends.ErrNotAuthorized},
		"cut":               {gatewaytest.Fault{Drop: true}, backends.ErrNoReply},
		"nonsense":          {gatewaytest.Fault{Corrupt: func(b []byte) []byte { return []byte(strings.Repeat("<", len(b))) }}, backends.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{})
			tt.fault.Match = func(q gatewaytest.Request) bool { return q.Op == "describe" }
			gw.Inject(tt.fault)
			err := newBackend(t, gw, upnp.Config{Wait: searchWait / 2}).Probe(t.Context())
			if wantError(t, err, tt.want, 0); errors.Is(err, backends.ErrUnsupported) {
				t.Error(err)
			}
		})
	}
}
