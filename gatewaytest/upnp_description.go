package gatewaytest

import (
	"encoding/xml"
	"fmt"
	"net/netip"
	"path"
	"strings"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// describe returns the response to a request for the description.
func (s *upnpServer) describe(base string) (httpResponse, error) {
	rules := s.config.Description
	switch n := s.descriptions.Add(1); {
	case n <= int64(rules.FirstReset):
		return httpResponse{}, errReset
	case n <= int64(rules.FirstReset+rules.FirstStatus):
		return httpResponse{}, statusError(503)
	case rules.Status != 0:
		return htmlPage(rules.Status), nil
	case rules.HTML:
		return htmlPage(200), nil
	}
	return httpResponse{status: 200, body: s.description(base)}, nil
}

// description returns the device description (UPnP Device Architecture 1.1, section
// 2.3). base is the start of the URL at which it was requested. The service descriptions
// that it names do not exist, as on many routers.
func (s *upnpServer) description(base string) []byte {
	d := document{quirks: s.config.XML}
	attr := choose(d.quirks.NoNamespace, "", ` xmlns="urn:schemas-upnp-org:device-1-0"`)
	if p := d.quirks.Prefix; p != "" {
		d.prefix = p + ":"
		attr = strings.Replace(attr, "xmlns", "xmlns:"+p, 1)
	}
	d.open("root", attr)
	d.open("specVersion", "")
	d.element("major", "1")
	d.element("minor", "1")
	d.close("specVersion")
	port := base[strings.LastIndexByte(base, ':'):]
	urlBase := map[quirks.URLBaseForm]string{
		quirks.URLBaseEmpty: "", quirks.URLBaseGood: base, quirks.URLBaseDeep: base + deepPath + "/",
		quirks.URLBaseWrongHost: wrongBase, quirks.URLBaseOldHost: strings.TrimSuffix(wrongBase, ":1") + port + "/",
		quirks.URLBaseNoPort: strings.TrimSuffix(base, port) + "/", quirks.URLBaseName: "http://router.invalid" + port + "/",
	}
	if text, present := urlBase[s.config.Description.URLBase]; present {
		d.element("URLBase", text)
	}
	s.describeDevice(&d, s.root, base)
	d.close("root")
	return d.bytes()
}

// describeDevice writes the description of a device and of the devices in it.
func (s *upnpServer) describeDevice(d *document, dev *igdDevice, base string) {
	d.open("device", "")
	d.element("deviceType", dev.typ)
	d.freeText("friendlyName", "Test router")
	d.freeText("manufacturer", "goforward")
	d.element("modelName", "gatewaytest")
	d.element("modelNumber", "1")
	d.element("UDN", dev.udn)
	d.open("serviceList", "")
	for _, v := range dev.services {
		d.open("service", "")
		d.element("serviceType", v.typ)
		d.element("serviceId", v.id)
		d.element("SCPDURL", "/scpd/"+string(v.kind)+".xml")
		written, _ := s.controlURL(v.name, base)
		d.element("controlURL", written)
		d.element("eventSubURL", choose(s.config.Events.Undescribed, "", v.eventPath()))
		d.close("service")
	}
	d.close("serviceList")
	if len(dev.devices) != 0 {
		d.open("deviceList", "")
		for _, in := range dev.devices {
			s.describeDevice(d, in, base)
		}
		d.close("deviceList")
	}
	d.close("device")
}

// igdDevice is a device in the description.
type igdDevice struct {
	typ, udn string
	services []*igdService
	devices  []*igdDevice
}

// igdService is a service in the description.
type igdService struct {
	kind serviceKind
	typ  string
	id   string
	// path is the path of the control URL; name is the end of that path.
	path, name string
	// connected is set for the services of the connection that has the external address.
	connected bool
	// session is the external address of its entries in the table.
	session netip.Addr
	// first is set for the first connection service of a device.
	first bool
}

// serviceKind is the type of a service without its version.
type serviceKind string

const (
	layer3Forwarding serviceKind = "Layer3Forwarding"
	wanCommon        serviceKind = "WANCommonInterfaceConfig"
	wanIP            serviceKind = "WANIPConnection"
	wanPPP           serviceKind = "WANPPPConnection"
	ipv6Firewall     serviceKind = "WANIPv6FirewallControl"
	contentDirectory serviceKind = "ContentDirectory"
)

// serviceIDs are the service identifiers that the standards define.
var serviceIDs = map[serviceKind]string{
	layer3Forwarding: "L3Forwarding1",
	wanCommon:        "WANCommonIFC1",
	wanIP:            "WANIPConn1",
	wanPPP:           "WANPPPConn1",
	ipv6Firewall:     "WANIPv6FC1",
	contentDirectory: "ContentDirectory",
}

// buildTree creates the devices and services that the config describes.
func (s *upnpServer) buildTree() *igdDevice {
	v := s.config.Version
	if s.config.Description.MediaServer {
		return &igdDevice{
			typ: s.urn("device", "MediaServer", 1), udn: s.config.UDN,
			services: []*igdService{s.service(contentDirectory, 1, 0, true)},
		}
	}
	root := &igdDevice{
		typ: s.urn("device", "InternetGatewayDevice", v), udn: s.config.UDN,
		services: []*igdService{s.service(layer3Forwarding, 1, 0, true)},
	}
	for i := range s.config.Description.WANDevices {
		connected := i == s.config.Description.Connected
		root.devices = append(root.devices, &igdDevice{
			typ: s.urn("device", "WANDevice", v), udn: fmt.Sprintf("%s-wan%d", s.config.UDN, i),
			services: []*igdService{s.service(wanCommon, 1, i, connected)},
			devices: []*igdDevice{{
				typ: s.urn("device", "WANConnectionDevice", v), udn: fmt.Sprintf("%s-conn%d", s.config.UDN, i),
				services: s.connections(i, connected),
			}},
		})
	}
	if s.config.Description.SharedUDN {
		for _, d := range root.all() {
			d.udn = root.udn
		}
	}
	return root
}

// connections returns the services of a WANConnectionDevice.
func (s *upnpServer) connections(i int, connected bool) []*igdService {
	var all []*igdService
	choice, v := s.config.Description.Connections, s.config.Version
	if choice != quirks.ConnectionIP {
		all = append(all, s.service(wanPPP, 1, i, connected && choice == quirks.ConnectionPPP))
	}
	if choice != quirks.ConnectionPPP {
		all = append(all, s.service(wanIP, v, i, connected))
	}
	all[0].first = true
	if s.config.Description.TwoSessions {
		second := *all[len(all)-1]
		second.first, second.session = false, secondSession
		second.name, second.id = second.name+"2", strings.TrimSuffix(second.id, "1")+"2"
		_, second.path = s.controlURL(second.name, "")
		all = append(all, &second)
	}
	if v == 2 || s.config.Search.IPv4Only {
		all = append(all, s.service(ipv6Firewall, 1, i, connected))
	}
	return all
}

// service returns a service of WAN device i.
func (s *upnpServer) service(kind serviceKind, version, i int, connected bool) *igdService {
	v := &igdService{
		kind: kind, typ: s.urn("service", string(kind), version), connected: connected,
		id: "urn:upnp-org:serviceId:" + serviceIDs[kind], name: fmt.Sprintf("%d/%s", i, kind),
	}
	_, v.path = s.controlURL(v.name, "")
	return v
}

// urn returns the type of a device or service.
func (s *upnpServer) urn(what, name string, version int) string {
	domain := choose(s.config.Description.DSLForum, "dslforum-org", "schemas-upnp-org")
	return fmt.Sprintf("urn:%s:%s:%s:%d", domain, what, name, version)
}

// controlURL returns the control URL of a service as it is written in the description, and
// the target of requests to it. base is the start of the URL at which the description was
// requested.
func (s *upnpServer) controlURL(name, base string) (written, target string) {
	rooted := "/ctl/" + name
	described, _, _ := strings.Cut(s.config.Description.Path, "?")
	if s.config.Description.URLBase == quirks.URLBaseDeep {
		described = deepPath + "/"
	}
	relative := map[quirks.ControlURLForm]string{
		quirks.ControlRelative: "ctl/" + name, quirks.ControlDot: "./ctl/" + name, quirks.ControlParent: "../ctl/" + name,
		quirks.ControlColon: s.config.UDN + "/" + name,
	}
	absolute := map[quirks.ControlURLForm]string{
		quirks.ControlRooted: rooted, quirks.ControlAbsolute: base + rooted, quirks.ControlSpaces: "\n\t " + rooted + " \r\n",
		quirks.ControlSchemeRelative: strings.TrimPrefix(base, "http:") + rooted, quirks.ControlHostPort: strings.TrimPrefix(base, "http://") + rooted,
		quirks.ControlRelativeToRoot: "ctl/" + name, quirks.ControlWrongHost: wrongBase + rooted, quirks.ControlEmpty: "",
	}
	form := s.config.Description.ControlURL
	if form == quirks.ControlQuery {
		return "?control=" + name, described + "?control=" + name
	}
	if written, is := relative[form]; is {
		return written, path.Join(path.Dir(described), written)
	}
	return absolute[form], rooted
}

// wrongBase is the base of wrong URLs. It is on loopback, so that a client that uses
// such a URL does not connect to a foreign host.
const wrongBase = "http://127.9.9.9:1"

// deepPath is the path in the URLBase of URLBaseDeep, without the slash at its end.
const deepPath = "/upnp/control"

// all returns the device and the devices in it; a device comes before those in it.
func (d *igdDevice) all() []*igdDevice {
	list := []*igdDevice{d}
	for _, in := range d.devices {
		list = append(list, in.all()...)
	}
	return list
}

// serviceAt returns the service whose control URL has this path, or nil.
func (s *upnpServer) serviceAt(path string) *igdService {
	for _, d := range s.root.all() {
		for _, v := range d.services {
			if v.path == path {
				return v
			}
		}
	}
	return nil
}

// document builds an XML document. It escapes text, and applies the quirks for
// encodings.
type document struct {
	b      strings.Builder
	quirks quirks.XML
	prefix string // prefix of element names, including the colon
}

// open writes a start tag. The attributes are written as they are.
func (d *document) open(name, attrs string) {
	start := d.less() + d.prefix + name + attrs
	if q := d.quirks; d.b.Len() == 0 {
		d.b.WriteString(start + choose(q.AttrLess, ` a="<"`, "") + ">" + choose(q.CommentDashes, "<!-- a -- b -->", "") +
			choose(q.EchoPI, "<? echo ?>", "") + choose(q.TextCDATAEnd, "]]>", ""))
		return
	}
	d.b.WriteString(start + ">")
}

// close writes an end tag.
func (d *document) close(name string) { d.b.WriteString(d.less() + "/" + d.prefix + name + ">") }

// less returns the start of a tag.
func (d *document) less() string { return choose(d.quirks.SpacedTag, "< ", "<") }

// element writes an element with text in it.
func (d *document) element(name, text string) {
	d.open(name, "")
	d.b.WriteString(escape(text))
	d.close(name)
}

// freeText writes an element whose text has no meaning to a client. The quirks add
// characters that are hard to parse.
func (d *document) freeText(name, text string) {
	q := d.quirks
	d.open(name, "")
	d.b.WriteString(escape(text) + choose(q.Latin1, " f\u00fcr alle", "") + choose(q.BadUTF8, " \xfc\xff", "") + choose(q.RawAmpersand, " R&D", ""))
	d.close(name)
}

// bytes returns the document with its XML declaration.
func (d *document) bytes() []byte {
	q := d.quirks
	declaration := choose(q.Latin1, `<?xml version="1.0" encoding="ISO-8859-1"?>`, `<?xml version="1.0"?>`)
	text := choose(q.BOM, "\ufeff", "") + choose(q.LeadingSpace, "\r\n ", "") + choose(q.NoDeclaration, "", declaration) +
		d.b.String() + choose(q.NULTail, "\x00\x00", "")
	if q.Latin1 {
		text = toLatin1(text)
	}
	return []byte(text)
}

// toLatin1 encodes the text as ISO-8859-1. It replaces other characters by question
// marks. A byte order mark and bytes that are not UTF-8 are kept.
func toLatin1(text string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == '\ufeff' && i == 0:
			b.WriteRune(r)
		case r == '\ufffd':
			b.WriteByte(text[i])
		case r < 0x100:
			b.WriteByte(byte(r))
		default:
			b.WriteByte('?')
		}
	}
	return b.String()
}

// escape escapes text for XML.
func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a strings.Builder never fails
	return b.String()
}
