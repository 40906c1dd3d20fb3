package gatewaytest_test

import (
	"encoding/xml"
	"fmt"
	"strings"
	"testing"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

type describedDevice struct {
	Type     string `xml:"deviceType"`
	UDN      string `xml:"UDN"`
	Services []struct {
		Type    string `xml:"serviceType"`
		ID      string `xml:"serviceId"`
		Control string `xml:"controlURL"`
	} `xml:"serviceList>service"`
	Devices []describedDevice `xml:"deviceList>device"`
}

// tree returns a device, its services, and the devices in it, one on each line.
func (d describedDevice) tree(indent string) string {
	text := indent + d.Type + "\n"
	for _, v := range d.Services {
		text += fmt.Sprintf("%s- %s %s %q\n", indent, v.Type, strings.TrimPrefix(v.ID, "urn:upnp-org:serviceId:"), v.Control)
	}
	for _, in := range d.Devices {
		text += in.tree(indent + "  ")
	}
	return text
}

func getDescription(t *testing.T, c igdClient, path string) (body string, tree string) {
	t.Helper()
	header, body := splitResponse(c.get(path))
	if !strings.HasPrefix(header, "HTTP/1.1 200 OK\r\n") || !strings.Contains(header, "\r\nCONTENT-LENGTH: "+itoa(len(body))) {
		t.Errorf("header %s", header)
	}
	var root struct {
		Device describedDevice `xml:"device"`
	}
	if err := xml.Unmarshal([]byte(body), &root); err != nil {
		t.Errorf("%v in %s", err, body)
	}
	if root.Device.UDN != c.gw.UPnP().UDN() {
		t.Errorf("UDN %s, want %s", root.Device.UDN, c.gw.UPnP().UDN())
	}
	return body, root.Device.tree("")
}

func TestUPnPDescription(t *testing.T) {
	t.Parallel()
	type description = quirks.Description
	for name, tt := range map[string]struct {
		igd  igdQuirks
		want string
	}{
		"version 2": {igdQuirks{}, `
schemas-upnp-org:device:InternetGatewayDevice:2
- schemas-upnp-org:service:Layer3Forwarding:1 L3Forwarding1 "/ctl/0/Layer3Forwarding"
  schemas-upnp-org:device:WANDevice:2
  - schemas-upnp-org:service:WANCommonInterfaceConfig:1 WANCommonIFC1 "/ctl/0/WANCommonInterfaceConfig"
    schemas-upnp-org:device:WANConnectionDevice:2
    - schemas-upnp-org:service:WANIPConnection:2 WANIPConn1 "/ctl/0/WANIPConnection"
    - schemas-upnp-org:service:WANIPv6FirewallControl:1 WANIPv6FC1 "/ctl/0/WANIPv6FirewallControl"
`},
		"version 1 of the DSL forum, PPP": {
			igdQuirks{Version: 1, Description: description{DSLForum: true, Connections: quirks.ConnectionPPP, ControlURL: quirks.ControlRelative}}, `
dslforum-org:device:InternetGatewayDevice:1
- dslforum-org:service:Layer3Forwarding:1 L3Forwarding1 "ctl/0/Layer3Forwarding"
  dslforum-org:device:WANDevice:1
  - dslforum-org:service:WANCommonInterfaceConfig:1 WANCommonIFC1 "ctl/0/WANCommonInterfaceConfig"
    dslforum-org:device:WANConnectionDevice:1
    - dslforum-org:service:WANPPPConnection:1 WANPPPConn1 "ctl/0/WANPPPConnection"
`,
		},
		"two WAN devices, two connections": {
			igdQuirks{Version: 1, Description: description{WANDevices: 2, Connections: quirks.ConnectionBoth, ControlURL: quirks.ControlSpaces}}, `
schemas-upnp-org:device:InternetGatewayDevice:1
- schemas-upnp-org:service:Layer3Forwarding:1 L3Forwarding1 "\n\t /ctl/0/Layer3Forwarding \r\n"
  schemas-upnp-org:device:WANDevice:1
  - schemas-upnp-org:service:WANCommonInterfaceConfig:1 WANCommonIFC1 "\n\t /ctl/0/WANCommonInterfaceConfig \r\n"
    schemas-upnp-org:device:WANConnectionDevice:1
    - schemas-upnp-org:service:WANPPPConnection:1 WANPPPConn1 "\n\t /ctl/0/WANPPPConnection \r\n"
    - schemas-upnp-org:service:WANIPConnection:1 WANIPConn1 "\n\t /ctl/0/WANIPConnection \r\n"
  schemas-upnp-org:device:WANDevice:1
  - schemas-upnp-org:service:WANCommonInterfaceConfig:1 WANCommonIFC1 "\n\t /ctl/1/WANCommonInterfaceConfig \r\n"
    schemas-upnp-org:device:WANConnectionDevice:1
    - schemas-upnp-org:service:WANPPPConnection:1 WANPPPConn1 "\n\t /ctl/1/WANPPPConnection \r\n"
    - schemas-upnp-org:service:WANIPConnection:1 WANIPConn1 "\n\t /ctl/1/WANIPConnection \r\n"
`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, got := getDescription(t, startIGD(t, tt.igd), "/rootDesc.xml")
			if got = strings.ReplaceAll(got, "urn:", ""); got != tt.want[1:] {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want[1:])
			}
		})
	}
}

// TestUPnPControlURLs checks that each form of a control URL leads to the service if the
// client resolves it correctly.
func TestUPnPControlURLs(t *testing.T) {
	t.Parallel()
	for form, tt := range []struct{ written, path string }{
		quirks.ControlRooted:         {"/ctl/0/WANIPConnection", ipPath},
		quirks.ControlAbsolute:       {"BASE/ctl/0/WANIPConnection", ipPath},
		quirks.ControlRelative:       {"ctl/0/WANIPConnection", "/some/where" + ipPath},
		quirks.ControlRelativeToRoot: {"ctl/0/WANIPConnection", ipPath},
		quirks.ControlColon:          {"uuid:00000000-0000-0000-0000-000000000001/0/WANIPConnection", "/some/where/uuid:00000000-0000-0000-0000-000000000001/0/WANIPConnection"},
		quirks.ControlSpaces:         {"&#xA;&#x9; /ctl/0/WANIPConnection &#xD;&#xA;", ipPath},
		quirks.ControlWrongHost:      {"http://127.9.9.9:1/ctl/0/WANIPConnection", ipPath},
		quirks.ControlEmpty:          {"", ipPath},
		quirks.ControlQuery:          {"?control=0/WANIPConnection", "/some/where/d.xml?control=0/WANIPConnection"},
		quirks.ControlParent:         {"../ctl/0/WANIPConnection", "/some" + ipPath},
		quirks.ControlDot:            {"./ctl/0/WANIPConnection", "/some/where" + ipPath},
		quirks.ControlSchemeRelative: {"//HOST/ctl/0/WANIPConnection", ipPath},
		quirks.ControlHostPort:       {"HOST/ctl/0/WANIPConnection", ipPath},
	} {
		t.Run(fmt.Sprint(form), func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{
				UDN:         "uuid:00000000-0000-0000-0000-000000000001",
				Description: quirks.Description{Path: "/some/where/d.xml", ControlURL: quirks.ControlURLForm(form)},
			})
			if want := "http://" + c.to + "/some/where/d.xml"; c.gw.UPnP().DescriptionURL() != want {
				t.Errorf("description at %s, want %s", c.gw.UPnP().DescriptionURL(), want)
			}
			_, body := splitResponse(c.get("/some/where/d.xml"))
			want := strings.NewReplacer("BASE", "http://"+c.to, "HOST", c.to).Replace(tt.written)
			if !strings.Contains(body, "<controlURL>"+want+"</controlURL>") {
				t.Errorf("no control URL %q in %s", want, body)
			}
			c.path = tt.path
			checkCodes(t, []int{c.add()}, 0)
			for _, path := range []string{"/", "/rootDesc.xml", "/ctl"} {
				c.path = path
				if got, err := c.request("GetStatusInfo"); err != nil || statusLine(got) != "404 Not Found" {
					t.Errorf("at %s: %s, %v", path, got, err)
				}
			}
		})
	}
}

func TestUPnPURLBase(t *testing.T) {
	t.Parallel()
	for form, want := range []string{
		quirks.URLBaseAbsent:    "",
		quirks.URLBaseEmpty:     "<URLBase></URLBase>",
		quirks.URLBaseGood:      "<URLBase>BASE</URLBase>",
		quirks.URLBaseWrongHost: "<URLBase>http://127.9.9.9:1</URLBase>",
		quirks.URLBaseNoPort:    "<URLBase>http://127.0.0.1/</URLBase>",
		quirks.URLBaseName:      "<URLBase>http://router.invalid:PORT/</URLBase>",
		quirks.URLBaseOldHost:   "<URLBase>http://127.9.9.9:PORT/</URLBase>",
		quirks.URLBaseDeep:      "<URLBase>BASE/upnp/control/</URLBase>",
	} {
		c := startIGD(t, igdQuirks{Description: quirks.Description{URLBase: quirks.URLBaseForm(form)}})
		body, _ := getDescription(t, c, "/rootDesc.xml")
		want = strings.NewReplacer("BASE", "http://"+c.to, "PORT", c.to[strings.IndexByte(c.to, ':')+1:]).Replace(want)
		if !strings.Contains(body, "</specVersion>"+want+"<device>") {
			t.Errorf("form %d: want %q in %s", form, want, body)
		}
	}
}

func TestUPnPXML(t *testing.T) {
	t.Parallel()
	type form = quirks.XML
	const (
		root     = `<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion>`
		envelope = `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><s:Fault>`
		plain    = `<?xml version="1.0"?>`
		latin1   = `<?xml version="1.0" encoding="ISO-8859-1"?>`
	)
	for name, tt := range map[string]struct {
		quirks            form
		before, after     string // start and end of each document
		root, name, fault string // texts in the documents
	}{
		"none":           {form{}, plain, ">", root, "<friendlyName>Test router</", "<errorDescription>NoSuchEntryInArray</"},
		"latin 1":        {form{Latin1: true}, latin1, ">", root, "<friendlyName>Test router f\xfcr alle</", "<errorDescription>NoSuchEntryInArray f\xfcr alle</"},
		"bad utf-8":      {form{BadUTF8: true}, plain, ">", root, "<friendlyName>Test router \xfc\xff</", "<errorDescription>NoSuchEntryInArray \xfc\xff</"},
		"ampersand":      {form{RawAmpersand: true}, plain, ">", root, "<friendlyName>Test router R&D</", "<errorDescription>NoSuchEntryInArray R&D</"},
		"bom":            {form{BOM: true}, "\xef\xbb\xbf" + plain, ">", root, "", ""},
		"leading space":  {form{LeadingSpace: true}, "\r\n " + plain, ">", root, "", ""},
		"no declaration": {form{NoDeclaration: true}, "", ">", root, "", ""},
		"nul tail":       {form{NULTail: true}, plain, ">\x00\x00", root, "", ""},
		"prefix": {
			form{Prefix: "d"},
			plain, ">", `<d:root xmlns:d="urn:schemas-upnp-org:device-1-0"><d:specVersion>`,
			"<d:friendlyName>Test router</d:", "",
		},
		"no namespace": {form{NoNamespace: true}, plain, ">", "<root><specVersion>", "", ""},
		"combined": {
			form{Latin1: true, BOM: true, LeadingSpace: true, NULTail: true, RawAmpersand: true, Prefix: "d", NoNamespace: true},
			"\xef\xbb\xbf\r\n " + latin1, ">\x00\x00", "<d:root><d:specVersion>", "router f\xfcr alle R&D</", " f\xfcr alle R&D</",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startIGD(t, igdQuirks{XML: tt.quirks})
			_, body := splitResponse(c.get("/rootDesc.xml"))
			response, err := c.request("GetSpecificPortMappingEntry", "NewRemoteHost", "", "NewExternalPort", "1", "NewProtocol", "TCP")
			_, fault := splitResponse(response)
			for text, want := range map[string][2]string{body: {tt.root, tt.name}, fault: {envelope, tt.fault}} {
				if !strings.HasPrefix(text, tt.before+want[0]) || !strings.HasSuffix(text, tt.after) || !strings.Contains(text, want[1]) {
					t.Errorf("got %q, %v, want %q and %q", text, err, tt.before+want[0], want[1])
				}
			}
		})
	}
}
