package upnp

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lenient"
)

// rootDesc is a description in its standard form, with two WAN connection devices.
const rootDesc = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>` + urlBase + `
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>Test Router</friendlyName>
<manufacturer>ACME</manufacturer><manufacturerURL>http://x/</manufacturerURL><modelName>R1</modelName><modelNumber>7</modelNumber>
<UDN>uuid:1</UDN><iconList><icon><mimetype>image/png</mimetype><width>48px</width></icon></iconList>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><serviceId>urn:upnp-org:serviceId:L3Forwarding1</serviceId><controlURL>/l3</controlURL><SCPDURL>/l3.xml</SCPDURL></service></serviceList>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><friendlyName>WAN</friendlyName><UDN>uuid:2</UDN>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType><controlURL>/c</controlURL></service></serviceList>
<deviceList><device><UDN>uuid:3</UDN><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><controlURL>` + controlURL + `</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s.xml</SCPDURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><serviceId>urn:upnp-org:serviceId:WANPPPConn1</serviceId><controlURL>/ppp</controlURL></service>
</serviceList></device>
<device><UDN>uuid:4</UDN><serviceList>
<service><serviceType>urn:dslforum-org:service:WANIPConnection:2</serviceType><controlURL>/ip2</controlURL></service>
<service><serviceType>urn:schemas-upnp-org:service:WANIPv6FirewallControl:1</serviceType><controlURL>/fw?6</controlURL></service>
</serviceList></device></deviceList></device></deviceList></device></root>`

// Placeholders in rootDesc.
const (
	urlBase    = "<!--URLBase-->"
	controlURL = "/ctl"
)

const location = "http://192.168.1.1:5000/igd/rootDesc.xml"

func parse(t *testing.T, description, from string) (*Device, error) {
	t.Helper()
	base, err := url.Parse(from)
	if err != nil {
		t.Fatal(err)
	}
	return ParseDescription([]byte(description), base)
}

var exported = cmp.Options{cmpopts.IgnoreUnexported(Service{}), cmpopts.EquateComparable(netip.Addr{})}

var testRouter = Device{
	URL: location, Host: netip.MustParseAddr("192.168.1.1"), UDN: "uuid:1",
	FriendlyName: "Test Router", Manufacturer: "ACME", Model: "R1", ModelNumber: "7",
	Services: []Service{
		{Type: ip1, ID: "urn:upnp-org:serviceId:WANIPConn1", ControlURL: "http://192.168.1.1:5000/ctl", EventURL: "http://192.168.1.1:5000/e", UDN: "uuid:3"},
		{Type: "urn:schemas-upnp-org:service:WANPPPConnection:1", ID: "urn:upnp-org:serviceId:WANPPPConn1", ControlURL: "http://192.168.1.1:5000/ppp", UDN: "uuid:3"},
		{Type: "urn:dslforum-org:service:WANIPConnection:2", ControlURL: "http://192.168.1.1:5000/ip2", UDN: "uuid:4"},
		{Type: "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1", ControlURL: "http://192.168.1.1:5000/fw?6", UDN: "uuid:4"},
	},
}

func TestDescription(t *testing.T) {
	noNamespace := strings.ReplaceAll(rootDesc, ` xmlns="urn:schemas-upnp-org:device-1-0"`, "")
	prefixed := strings.NewReplacer("</", "</d:", "<!", "<!", "<?", "<?", "<", "<d:").Replace(rootDesc)
	for name, description := range map[string]string{
		"standard":                          rootDesc,
		"no namespace":                      noNamespace,
		"other namespace":                   strings.ReplaceAll(rootDesc, "device-1-0", "device-1-9"),
		"prefixed":                          prefixed,
		"no declaration":                    strings.TrimPrefix(rootDesc, `<?xml version="1.0"?>`),
		"byte order mark, white space, NUL": "\ufeff \r\n" + rootDesc + "\x00\x00",
		"GBK declared":                      strings.Replace(rootDesc, `"1.0"?>`, `"1.0" encoding="GBK"?>`, 1),
		"capitals":                          strings.NewReplacer("serviceType>", "SERVICETYPE>", "controlURL>", "ControlUrl>").Replace(rootDesc),
		"CDATA":                             strings.ReplaceAll(rootDesc, "Test Router", "<![CDATA[Test Router]]>"),
		"DTD":                               `<!DOCTYPE root [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>` + noNamespace,
		"stray end tags":                    strings.ReplaceAll(rootDesc, "<manufacturer>", "</br></font><manufacturer>"),
	} {
		d, err := parse(t, description, location)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(&testRouter, d, exported); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestDescriptionNames checks that names are printable and limited in length, and
// that a malformed name does not make the description fail.
func TestDescriptionNames(t *testing.T) {
	for in, want := range map[string]string{
		"R&D":                            "R&D",
		"R&amp;D":                        "R&D",
		"I <3 <<4 a< routers":            "I <3 <<4 a< routers",
		"B\xfccher":                      "Bücher",
		"Bücher":                         "Bücher",
		"a\x1b[31m\x00b\u202ec&#27;&#0;": "a[31mb?c??",
		"&a;&unknown;":                   "&a;&unknown;",
		strings.Repeat("ü", 300):         strings.Repeat("ü", 128),
		"":                               "",
	} {
		document, err := lenient.Parse([]byte("<root><device><friendlyName>"+in+"</friendlyName></device></root>"), 10)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		for _, e := range document.All("friendlyName") {
			got = printable(e.Text)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestControlURL(t *testing.T) {
	const at = "http://192.168.1.1:5000"
	for _, tt := range []struct {
		base, control string
		want          []string // the expected interpretations
	}{
		{"", "/ctl", []string{at + "/ctl"}},
		{"", "ctl", []string{at + "/igd/ctl", at + "/ctl"}},
		{"", " /ctl\n", []string{at + "/ctl"}},
		{"", "\n  /ctl  ", []string{at + "/ctl"}},
		{"", at + "/ctl", []string{at + "/ctl"}},
		{"", "http://10.9.9.9:1/ctl", []string{"http://192.168.1.1:1/ctl", at + "/ctl"}},
		{"", "HTTP://router.lan:5000/ctl", []string{at + "/ctl"}},
		{"", "http://192.168.1.1/ctl", []string{"http://192.168.1.1:80/ctl", at + "/ctl"}},
		{"", "http://192.168.1.1:0/ctl", []string{at + "/ctl"}},
		{"", "uuid:abc/WANPPPConnection:1", []string{at + "/igd/uuid:abc/WANPPPConnection:1", at + "/uuid:abc/WANPPPConnection:1"}},
		{"", "/upnp?control=1&x=http://y/", []string{at + "/upnp?control=1&amp;x=http://y/"}},
		{"", "//ctl/x", []string{at + "/x", "http://192.168.1.1:80/x", at + "//ctl/x"}},
		{"", "//router.lan:6000/ctl?a", []string{"http://192.168.1.1:6000/ctl?a", at + "/ctl?a", at + "//router.lan:6000/ctl?a"}},
		{"", "192.168.1.1:6000/ctl?a", []string{"http://192.168.1.1:6000/ctl?a", at + "/ctl?a", at + "/igd/192.168.1.1:6000/ctl?a", at + "/192.168.1.1:6000/ctl?a"}},
		{"", "10.9.9.9:5000/ctl", []string{at + "/ctl", at + "/igd/10.9.9.9:5000/ctl", at + "/10.9.9.9:5000/ctl"}},
		{"", "?control=WANIPConn1", []string{at + "/igd/rootDesc.xml?control=WANIPConn1", at + "/?control=WANIPConn1"}},
		{"", "../ctl/x", []string{at + "/ctl/x"}},
		{"", "../../ctl/../x", []string{at + "/x"}},
		{"", "./ctl/x", []string{at + "/igd/ctl/x", at + "/ctl/x"}},
		{"", "#ctl", []string{at + "/igd/rootDesc.xml", at + "/"}},
		{"", "uuid:1234/ctl", []string{"http://192.168.1.1:1234/ctl", at + "/ctl", at + "/igd/uuid:1234/ctl", at + "/uuid:1234/ctl"}},
		{"", "a:b@192.168.1.1:6000/ctl", []string{"http://192.168.1.1:6000/ctl", at + "/ctl", at + "/igd/a:b@192.168.1.1:6000/ctl", at + "/a:b@192.168.1.1:6000/ctl"}},
		{"", "mailto:a", []string{at + "/igd/mailto:a", at + "/mailto:a"}},
		{"", "/a b%20c%zz", []string{at + "/a%20b%2520c%25zz"}},
		{"", "/a\r\nX: y?b\r\nc d", []string{at + "/a%0AX:%20y?b%0Ac%20d"}},
		{"", "/a?b c\u00fc", []string{at + "/a?b%20c%C3%BC"}},
		{"", "", nil},
		{"", " ", nil},
		{"", "https://192.168.1.1/ctl", nil},
		{"", "ftp://192.168.1.1/ctl", nil},
		{"", "/" + strings.Repeat("x", 2000), nil},
		{"-", "/ctl", []string{at + "/ctl"}},
		{"nonsense", "/ctl", []string{at + "/ctl"}},
		{"://", "/ctl", []string{at + "/ctl"}},
		{"http://192.168.1.1:5000", "ctl", []string{at + "/ctl", at + "/igd/ctl"}},
		{"http://192.168.1.1:5000/up/", "ctl", []string{at + "/up/ctl", at + "/igd/ctl", at + "/ctl"}},
		{"http://192.168.1.1:6000/", "/ctl", []string{"http://192.168.1.1:6000/ctl", at + "/ctl"}},
		{"http://192.168.1.1/", "/ctl", []string{at + "/ctl", "http://192.168.1.1:80/ctl"}},
		{"http://192.168.1.1/up/", "ctl", []string{at + "/up/ctl", "http://192.168.1.1:80/up/ctl", at + "/igd/ctl", at + "/ctl"}},
		{"http://192.168.1.1:6000/up/d.xml", "?a", []string{"http://192.168.1.1:6000/up/d.xml?a", at + "/igd/rootDesc.xml?a", "http://192.168.1.1:6000/?a", at + "/?a"}},
		{"http://192.168.1.1:0/", "/ctl", []string{at + "/ctl"}},
		{"http://10.9.9.9:5000/", "/ctl", []string{at + "/ctl"}},
		{"http://10.9.9.9:7000/x/", "ctl", []string{"http://192.168.1.1:7000/x/ctl", at + "/igd/ctl", "http://192.168.1.1:7000/ctl", at + "/ctl"}},
		{"http://router.lan/", "/ctl", []string{at + "/ctl", "http://192.168.1.1:80/ctl"}},
		{"http://router.lan:7000/x/", "../ctl", []string{"http://192.168.1.1:7000/ctl", at + "/ctl"}},
		{"https://192.168.1.1:5000/", "/ctl", []string{at + "/ctl"}},
		{"http://a:b@192.168.1.1:6000/", "/ctl", []string{at + "/ctl"}},
	} {
		base := ""
		if tt.base != "" {
			base = "<URLBase>" + strings.TrimPrefix(tt.base, "-") + "</URLBase>"
		}
		description := strings.NewReplacer(urlBase, base, ">"+controlURL+"<", ">"+strings.ReplaceAll(tt.control, "&", "&amp;")+"<").Replace(rootDesc)
		d, err := parse(t, description, location)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if s := d.Services[0]; s.UDN == "uuid:3" && s.Kind() == IPConnection {
			for _, u := range append([]string{s.ControlURL}, s.alternates[:]...) {
				if u != "" {
					got = append(got, u)
				}
			}
			if _, err := NewClient(s, ClientConfig{}); err != nil {
				t.Errorf("%q %q: %v", tt.base, tt.control, err)
			}
		}
		for i := range tt.want {
			tt.want[i] = strings.ReplaceAll(tt.want[i], "&amp;", "&")
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("URLBase %q, controlURL %q (-want +got):\n%s", tt.base, tt.control, diff)
		}
	}
}

// TestEventURL checks that an event URL is on the device, and that a service without a usable one
// has no events.
func TestEventURL(t *testing.T) {
	for raw, want := range map[string]string{
		"/evt":                        "http://192.168.1.1:5000/evt",
		"evt?a=b":                     "http://192.168.1.1:5000/igd/evt?a=b",
		"http://192.168.1.1:6000/evt": "http://192.168.1.1:6000/evt",
		"http://203.0.113.9:80/evt":   "http://192.168.1.1:80/evt",
		"http://victim.example/evt":   "http://192.168.1.1:80/evt",
		"//203.0.113.9/evt":           "http://192.168.1.1:5000/evt",
		"http://a:b@192.168.1.1/evt":  "http://192.168.1.1:80/evt",
		"/a\r\nX: y":                  "http://192.168.1.1:5000/a%0AX:%20y",
		"https://192.168.1.1/evt":     "",
		"ftp://192.168.1.1/evt":       "",
		"":                            "",
	} {
		d, err := parse(t, strings.Replace(rootDesc, "<eventSubURL>/e<", "<eventSubURL>"+raw+"<", 1), location)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Services[0].EventURL; got != want {
			t.Errorf("%q: %q, want %q", raw, got, want)
		}
		if _, err := NewClient(d.Services[0], ClientConfig{}); err != nil {
			t.Errorf("%q: %v", raw, err)
		}
	}
	for _, events := range []string{"http://192.168.1.2:5000/evt", "https://192.168.1.1/evt", "http://router.lan/evt", "/evt"} {
		s := Service{Type: ip1, ControlURL: "http://192.168.1.1:5000/ctl", EventURL: events}
		if _, err := NewClient(s, ClientConfig{}); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v", events, err)
		}
	}
}

func TestDescriptionIPv6(t *testing.T) {
	d, err := parse(t, rootDesc, "http://[fe80::1%25eth0]:49000/igd.xml")
	if err != nil {
		t.Fatal(err)
	}
	if d.Host != netip.MustParseAddr("fe80::1%eth0") {
		t.Errorf("host %v", d.Host)
	}
	c, err := NewClient(d.Services[0], ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if e := c.urls[0]; e.addr != netip.MustParseAddrPort("[fe80::1%eth0]:49000") || e.hostHeader() != "[fe80::1]:49000" {
		t.Errorf("connects to %v as %v", e.addr, e.hostHeader())
	}
}

// TestHostHeader checks that the Host header has no zone, and no port if it is 80.
func TestHostHeader(t *testing.T) {
	for in, want := range map[string]string{
		"http://192.0.2.1/": "192.0.2.1", "http://192.0.2.1:80/": "192.0.2.1", "http://192.0.2.1:8080/": "192.0.2.1:8080",
		"http://192.0.2.1:180/": "192.0.2.1:180", "http://[fe80::1%25eth0]:80/": "[fe80::1]", "http://[2001:db8::80]:8/": "[2001:db8::80]:8",
	} {
		target, err := parseIPURL(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(request{}.encode(target, true)); got != "GET / HTTP/1.0\r\nHost: "+want+"\r\n\r\n" {
			t.Errorf("%s: %q", in, got)
		}
	}
}

func TestBadDescriptions(t *testing.T) {
	many := strings.Repeat(`<service><serviceType>`+ip1+`</serviceType><controlURL>/c</controlURL></service>`, 100)
	d, err := parse(t, "<root><device><serviceList>"+many+"</serviceList></device></root>", location)
	if err != nil || len(d.Services) != maxServices {
		t.Errorf("100 services: %v, %v", d, err)
	}
	for name, tt := range map[string]struct {
		description, from string
		want              error
	}{
		"empty":                            {"", location, backends.ErrMalformed},
		"HTML":                             {"<html><body>login</body></html>", location, backends.ErrMalformed},
		"deep":                             {strings.Repeat("<root>", 100), location, backends.ErrMalformed},
		"deep devices":                     {"<root>" + strings.Repeat("<device><deviceList>", 50), location, backends.ErrMalformed},
		"many elements":                    {"<root>" + strings.Repeat("<a/>", 5000) + "</root>", location, backends.ErrMalformed},
		"another device":                   {"<root><device><friendlyName>TV</friendlyName></device></root>", location, backends.ErrUnsupported},
		"newline in the type":              {"<root><device><serviceList><service><serviceType>urn:a&#10;b:service:WANIPConnection:1</serviceType><controlURL>/c</controlURL></service></serviceList></device></root>", location, backends.ErrUnsupported},
		"base without host":                {rootDesc, "/x", backends.ErrInvalid},
		"base with a host name":            {rootDesc, "http://router/x", backends.ErrInvalid},
		"base https":                       {rootDesc, "https://192.168.1.1/x", backends.ErrInvalid},
		"base with an unspecified address": {rootDesc, "http://0.0.0.0/x", backends.ErrInvalid},
	} {
		if d, err := parse(t, tt.description, tt.from); !errors.Is(err, tt.want) {
			t.Errorf("%s: %+v, %v, want %v", name, d, err, tt.want)
		}
	}
}

// TestDescriptionPrefixes checks that a truncated description yields only complete
// services. The event URL, which is not required, may be missing.
func TestDescriptionPrefixes(t *testing.T) {
	whole := map[Service]bool{}
	d, err := parse(t, rootDesc, location)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range d.Services {
		s.EventURL = ""
		whole[s] = true
	}
	seen := 0
	for n := range len(rootDesc) {
		d, err := parse(t, rootDesc[:n], location)
		if err != nil {
			if !errors.Is(err, backends.ErrMalformed) && !errors.Is(err, backends.ErrUnsupported) {
				t.Fatalf("%d bytes: %v", n, err)
			}
			continue
		}
		seen = max(seen, len(d.Services))
		for _, s := range d.Services {
			events := s.EventURL
			if s.EventURL = ""; !whole[s] || events != "" && events != testRouter.Services[0].EventURL {
				t.Fatalf("%d bytes: %+v, events at %q", n, s, events)
			}
		}
	}
	if seen != len(whole) {
		t.Errorf("at most %d services", seen)
	}
}

func TestService(t *testing.T) {
	for text, want := range map[string]struct {
		kind    ServiceKind
		version int
	}{
		ip1: {IPConnection, 1},
		"urn:schemas-upnp-org:service:WANIPConnection:2":        {IPConnection, 2},
		"urn:schemas-upnp-org:service:WANPPPConnection:1":       {PPPConnection, 1},
		"urn:dslforum-org:service:WANPPPConnection:1":           {PPPConnection, 1},
		"URN:schemas-upnp-org:Service:wanipv6firewallcontrol:1": {IPv6Firewall, 1},
		"urn:schemas-upnp-org:service:WANIPConnection":          {},
		"urn:schemas-upnp-org:service:WANIPConnection:x":        {},
		"urn:schemas-upnp-org:service:WANIPConnection:1:2":      {},
		"urn:schemas-upnp-org:device:WANIPConnection:1":         {},
		"urn:schemas-upnp-org:service:WANCommonConfig:1":        {},
		"": {},
	} {
		s := Service{Type: text}
		if s.Kind() != want.kind || s.Version() != want.version {
			t.Errorf("%q: %v, version %d", text, s.Kind(), s.Version())
		}
	}
}

func TestDescribe(t *testing.T) {
	get := func(s *rawServer, path string) (*Device, error) {
		return Describe(t.Context(), "http://"+s.addr.String()+path, ClientConfig{Source: netip.MustParseAddr("127.0.0.1")})
	}
	s := serveRaw(t, respondWith(status(501, "Not Implemented"), "HTTP/1.0 200 OK\n\n"+rootDesc))
	d, err := get(s, "/rootDesc.xml?x")
	if err != nil {
		t.Fatal(err)
	}
	if d.Local != netip.MustParseAddr("127.0.0.1") || d.Host != d.Local || len(d.Services) != 4 {
		t.Errorf("%+v", d)
	}
	want := []string{
		"GET /rootDesc.xml?x HTTP/1.1\r\nHost: " + s.addr.String() + "\r\nUser-Agent: goforward UPnP/1.1\r\nConnection: close\r\n\r\n",
		"GET /rootDesc.xml?x HTTP/1.0\r\nHost: " + s.addr.String() + "\r\n\r\n",
	}
	if diff := cmp.Diff(want, s.received()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if d, err := get(serveRaw(t, respondAndWait("HTTP/1.1 200 OK\r\n\r\n"+rootDesc)), "/"); err != nil || len(d.Services) != 4 {
		t.Errorf("connection left open: %v, %v", d, err)
	}
	for name, tt := range map[string]struct {
		response string
		want     error
		moved    bool
	}{
		"redirect":  {"HTTP/1.1 302 Found\r\nLocation: /y\r\n\r\n", backends.ErrMalformed, false},
		"not found": {status(404, rootDesc), backends.ErrMalformed, true},
		"password":  {status(401, ""), backends.ErrNotAuthorized, false},
		"forbidden": {status(403, "<html>"+rootDesc), backends.ErrNotAuthorized, false},
		"busy":      {status(503, ""), backends.ErrMalformed, false},
		"empty":     {ok(""), backends.ErrMalformed, false},
		"huge":      {ok("<root>" + strings.Repeat(" ", 300<<10) + "</root>"), backends.ErrMalformed, false},
		"closed":    {"", backends.ErrNoReply, false},
	} {
		d, err := get(serveRaw(t, respondWith(tt.response)), "/")
		if !errors.Is(err, tt.want) || Moved(err) != tt.moved {
			t.Errorf("%s: %+v, %v, want %v", name, d, err, tt.want)
		}
		var h *HTTPError
		if code := strings.Fields(tt.response + " - -")[1]; errors.As(err, &h) != (code != "200" && code != "-") || h != nil && strconv.Itoa(h.Status) != code {
			t.Errorf("%s: %v, want HTTP status %s", name, err, code)
		}
	}
	if _, err := Describe(t.Context(), "http://localhost:1/", ClientConfig{}); !errors.Is(err, backends.ErrInvalid) {
		t.Errorf("host name: %v", err)
	}
}

func TestRewriteLocation(t *testing.T) {
	lan := netip.MustParsePrefix("192.168.1.0/24")
	onLink := func(a netip.Addr) bool {
		return lan.Contains(a) || a.IsLinkLocalUnicast() || a.IsLoopback()
	}
	const gw, at = "192.168.1.1", "192.168.1.1:1900"
	for _, tt := range []struct{ location, from, gateway, want string }{
		{"http://192.168.1.1:5000/rootDesc.xml", at, gw, "http://192.168.1.1:5000/rootDesc.xml"},
		{"http://192.168.1.1:5000/rootDesc.xml", "192.168.1.1:40000", gw, "http://192.168.1.1:5000/rootDesc.xml"},
		{" HTTP://192.168.1.1/a?b#c ", at, gw, "http://192.168.1.1:80/a?b"},
		{"http://192.168.1.1:5000", at, gw, "http://192.168.1.1:5000/"},
		{"http://[::1]:1900/rootDesc.xml", at, gw, "http://192.168.1.1:1900/rootDesc.xml"},
		{"http://127.0.0.1:5000/", at, gw, "http://192.168.1.1:5000/"},
		{"http://0.0.0.0:5000/", at, gw, "http://192.168.1.1:5000/"},
		{"http://10.9.9.9:5000/x", at, gw, "http://192.168.1.1:5000/x"},
		{"http://8.8.8.8:5000/x", at, gw, "http://192.168.1.1:5000/x"},
		{"http://router.lan:5000/x", at, gw, "http://192.168.1.1:5000/x"},
		{"http://[fe80::1%3]:5000/", at, gw, "http://192.168.1.1:5000/"},
		{"http://[fe80::1%3]:5000/", "[fe80::1%eth0]:1900", "fe80::1%eth0", "http://[fe80::1%25eth0]:5000/"},
		{"http://[fe80::1%253]:5000/", "[fe80::1%eth0]:1900", "fe80::1%eth0", "http://[fe80::1%25eth0]:5000/"},
		{"http://[fe80::1]:5000/", "[fe80::1%eth0]:1900", gw, "http://[fe80::1%25eth0]:5000/"},
		{"http://192.168.1.1:5000/", "192.168.1.2:1900", gw, "http://192.168.1.1:5000/"},
		{"http://192.168.1.3:5000/", "192.168.1.2:1900", gw, "http://192.168.1.2:5000/"},
		{"http://192.168.1.2:5000/", "[::ffff:192.168.1.2]:1900", gw, "http://192.168.1.2:5000/"},
		{"http://192.168.1.2:5000/", "192.168.1.2:1900", "", "http://192.168.1.2:5000/"},
		{"http://10.0.0.1:5000/", "10.0.0.1:1900", "10.0.0.1", "http://10.0.0.1:5000/"}, // not on link, but it is the gateway
		{"http://127.0.0.1:5000/", "127.0.0.1:1900", "127.0.0.1", "http://127.0.0.1:5000/"},
		{"http://127.0.0.5:5000/", "127.0.0.2:1900", "127.0.0.1", "http://127.0.0.2:5000/"},
		{"http://127.0.0.1:5000/", "127.0.0.1:1900", gw, ""},
		{"http://10.0.0.1:5000/", "10.0.0.1:1900", gw, ""},
		{"http://192.168.1.1:5000/", "0.0.0.0:1900", gw, ""},
		{"http://192.168.1.1:5000/", "239.255.255.250:1900", gw, ""},
		{"https://192.168.1.1/x", at, gw, ""},
		{"file:///etc/passwd", at, gw, ""},
		{"http:opaque", at, gw, ""},
		{"/rootDesc.xml", at, gw, ""},
		{"", at, gw, ""},
		{"http://", at, gw, ""},
		{"http://a:b@192.168.1.1/x", at, gw, ""},
		{"http://@192.168.1.1/x", at, gw, ""},
		{"http://192.168.1.1:0/x", at, gw, ""},
		{"http://192.168.1.1:65536/x", at, gw, ""},
		{"http://192.168.1.1:x/x", at, gw, ""},
		{"http://192.168.1.1/a\r\nb", at, gw, ""},
		{"http://192.168.1.1/" + strings.Repeat("x", 2000), at, gw, ""},
	} {
		gateway, _ := netip.ParseAddr(tt.gateway)
		got, err := rewriteLocation(tt.location, netip.MustParseAddrPort(tt.from), gateway, onLink)
		if got != tt.want || (tt.want == "") != errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%q from %s: %q, %v; want %q", tt.location, tt.from, got, err, tt.want)
		}
	}
	if got, err := rewriteLocation(location, netip.AddrPort{}, netip.MustParseAddr(gw), onLink); err == nil {
		t.Errorf("without a source address: %q", got)
	}
}
