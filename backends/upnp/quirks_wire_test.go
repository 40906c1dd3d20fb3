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

// wireQuirks are gateways that read and write as real ones do.
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
		"URLBase empty":            {Description: description{URLBase: quirks.URLBaseEmpty}},
		"URLBase good":             {Description: description{URLBase: quirks.URLBaseGood}},
		"URLBase elsewhere":        {Description: description{URLBase: quirks.URLBaseWrongHost}},
		"URLBase without port":     {Description: description{URLBase: quirks.URLBaseNoPort}},
		"control absolute":         {Description: description{ControlURL: quirks.ControlAbsolute}},
		"control relative":         {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlRelative}},
		"control relative to root": {Description: description{Path: "/a/b.xml", ControlURL: quirks.ControlRelativeToRoot}},
		"control with a colon":     {Description: description{ControlURL: quirks.ControlColon}},
		"control with white space": {Description: description{ControlURL: quirks.ControlSpaces}},
		"control elsewhere":        {Description: description{ControlURL: quirks.ControlWrongHost}},
		"HTTP/1.0":                 {Wire: wire{HTTP10: true}},
		"no length":                {Wire: wire{NoLength: true}},
		"chunked":                  {Wire: wire{Chunked: true}},
		"length too short":         {Wire: wire{LengthOff: -3}},
		"length too long":          {Wire: wire{LengthOff: 30, LeaveOpen: true}},
		"line feeds":               {Wire: wire{LFOnly: true}},
		"no space":                 {Wire: wire{NoSpace: true}},
		"no reason":                {Wire: wire{NoReason: true}},
		"left open":                {Wire: wire{LeaveOpen: true, NoLength: true}},
		"Latin 1":                  {XML: form{Latin1: true}},
		"no UTF-8":                 {XML: form{BadUTF8: true}},
		"a bare &":                 {XML: form{RawAmpersand: true}},
		"a byte order mark":        {XML: form{BOM: true}},
		"blank before":             {XML: form{LeadingSpace: true}},
		"no declaration":           {XML: form{NoDeclaration: true}},
		"NUL behind":               {XML: form{NULTail: true}},
		"prefixes":                 {XML: form{Prefix: "d"}},
		"no namespace":             {XML: form{NoNamespace: true}},
		"SOAPAction as written":    {Demands: demands{ExactSOAPAction: true}},
		"SOAPAction quoted":        {Demands: demands{QuotedSOAPAction: true}},
		"SOAPAction not last":      {Demands: demands{SOAPActionNotLast: true}},
		"Content-Type":             {Demands: demands{ContentType: `text/xml; charset="utf-8"`}},
		"Host an address":          {Demands: demands{LiteralHost: true}},
		"GET in HTTP/1.0":          {Demands: demands{GetHTTP10: true}},
		"compact":                  {Demands: demands{Compact: true}},
		"remote host there":        {Demands: demands{RemoteHost: true}},
		"remote host not 0":        {Demands: demands{NoZeroRemoteHost: true}},
		"protocol in capitals":     {Demands: demands{UpperProtocol: true}},
		"all demands":              {Demands: strict},
		"much of it": {
			Version: 1, Demands: strict, Wire: wire{HTTP10: true, NoLength: true, LFOnly: true, NoSpace: true, NoReason: true},
			XML:         form{Latin1: true, LeadingSpace: true, NULTail: true, Prefix: "x", NoNamespace: true},
			Description: description{URLBase: quirks.URLBaseWrongHost, ControlURL: quirks.ControlSpaces, DSLForum: true},
			FaultForm:   quirks.FaultForm{Prefix: "SOAP", CamelCase: true, CodeSpaces: true, StatusOK: true},
		},
	}
}

// TestWireQuirks: however a gateway writes, all that can be asked of it works.
func TestWireQuirks(t *testing.T) {
	for name, router := range wireQuirks() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: router}})
			// Faster over a long timeout: a quirk that is waited out is none that works.
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
				t.Errorf("Unmap: %v, leaves %v", err, gw.Table())
			}
		})
	}
}

// TestFaultForms: a fault is understood whatever it is wrapped in.
func TestFaultForms(t *testing.T) {
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
		"no UTF-8":        {form{}, quirks.XML{BadUTF8: true}, 606, backends.ErrNotAuthorized},
		"a bare &":        {form{}, quirks.XML{RawAmpersand: true}, 606, backends.ErrNotAuthorized},
		"all but vendors": {form{Prefix: "SOAP-ENV", CamelCase: true, CodePrefix: "q", CodeSpaces: true, StatusOK: true}, quirks.XML{BadUTF8: true, NULTail: true}, 606, backends.ErrNotAuthorized},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, b := startBackend(t, quirks.UPnP{FaultForm: tt.form, XML: tt.xml, Rules: quirks.Rules{SwitchedOff: true}})
			_, err := b.Map(t.Context(), request(8080, 9000))
			wantError(t, err, tt.want, tt.code)
		})
	}
}

// TestLegacyHeaders: a device that takes no modern request gets one in the form
// that there always was.
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

// TestControlEmpty: without a control URL there is no gateway.
func TestControlEmpty(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Description: quirks.Description{ControlURL: quirks.ControlEmpty}}}})
	err := newBackend(t, gw, upnp.Config{Wait: searchWait / 2}).Probe(t.Context())
	if wantError(t, err, backends.ErrNoReply, 0); err != nil && !strings.Contains(err.Error(), "none of them a working gateway") {
		t.Error(err)
	}
}

// TestGatewayDescriptionFails: what is wrong with the gateway's own device is told.
func TestGatewayDescriptionFails(t *testing.T) {
	for name, tt := range map[string]struct {
		fault gatewaytest.Fault
		want  error
	}{
		"no page":    {gatewaytest.Fault{Reply: func([]byte) [][]byte { return [][]byte{[]byte("HTTP/1.1 404 Not Found\r\n\r\n")} }}, backends.ErrMalformed},
		"a password": {gatewaytest.Fault{Reply: func([]byte) [][]byte { return [][]byte{[]byte("HTTP/1.1 401 Unauthorized\r\n\r\n")} }}, backends.ErrNotAuthorized},
		"cut":        {gatewaytest.Fault{Drop: true}, backends.ErrNoReply},
		"nonsense":   {gatewaytest.Fault{Corrupt: func(b []byte) []byte { return []byte(strings.Repeat("<", len(b))) }}, backends.ErrMalformed},
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
