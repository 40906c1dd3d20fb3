package gatewaytest

import (
	"net/url"
	"strings"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// describe is the device description (UPnP Device Architecture 1.1, section
// 2.3), as it is served at the base. The service descriptions that it names are
// not there, as those of many routers.
func (s *upnpServer) describe(base string) []byte {
	d := document{quirks: s.config.XML}
	attr := ""
	if !d.quirks.NoNamespace {
		attr = ` xmlns="urn:schemas-upnp-org:device-1-0"`
	}
	if p := d.quirks.Prefix; p != "" {
		d.prefix = p + ":"
		attr = strings.Replace(attr, "xmlns", "xmlns:"+p, 1)
	}
	d.open("root", attr)
	d.open("specVersion", "")
	d.element("major", "1")
	d.element("minor", "1")
	d.close("specVersion")
	switch s.config.Description.URLBase {
	case quirks.URLBaseEmpty:
		d.element("URLBase", "")
	case quirks.URLBaseGood:
		d.element("URLBase", base)
	case quirks.URLBaseWrongHost:
		d.element("URLBase", wrongBase)
	case quirks.URLBaseNoPort:
		if u, err := url.Parse(base); err == nil {
			host := u.Hostname()
			if strings.Contains(host, ":") {
				host = "[" + host + "]"
			}
			d.element("URLBase", "http://"+host+"/")
		}
	}
	s.describeDevice(&d, s.root, base)
	d.close("root")
	return d.bytes()
}

func (s *upnpServer) describeDevice(d *document, dev *igdDevice, base string) {
	d.open("device", "")
	d.element("deviceType", dev.typ)
	d.title("friendlyName", "Test router")
	d.title("manufacturer", "goforward")
	d.element("modelName", "gatewaytest")
	d.element("modelNumber", "1")
	d.element("UDN", dev.udn)
	d.open("serviceList", "")
	for _, v := range dev.services {
		d.open("service", "")
		d.element("serviceType", v.typ)
		d.element("serviceId", v.id)
		d.element("SCPDURL", "/scpd/"+string(v.kind)+".xml")
		d.element("controlURL", s.controlURL(v, base))
		d.element("eventSubURL", "/evt/"+v.name)
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
