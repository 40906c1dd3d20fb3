package gatewaytest

import (
	"fmt"
	"path"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// igdDevice is a device of the description.
type igdDevice struct {
	typ, udn string
	services []*igdService
	devices  []*igdDevice
}

// igdService is a service of the description.
type igdService struct {
	kind serviceKind
	typ  string
	id   string
	// path is where actions are posted to, and name what it ends in.
	path, name string
	// connected services are those of the connection that has the address.
	connected bool
}

// serviceKind is a service whatever its version.
type serviceKind string

const (
	layer3Forwarding serviceKind = "Layer3Forwarding"
	wanCommon        serviceKind = "WANCommonInterfaceConfig"
	wanIP            serviceKind = "WANIPConnection"
	wanPPP           serviceKind = "WANPPPConnection"
	ipv6Firewall     serviceKind = "WANIPv6FirewallControl"
)

// ids are the service identifiers that the standards give.
var ids = map[serviceKind]string{
	layer3Forwarding: "L3Forwarding1",
	wanCommon:        "WANCommonIFC1",
	wanIP:            "WANIPConn1",
	wanPPP:           "WANPPPConn1",
	ipv6Firewall:     "WANIPv6FC1",
}

// buildTree makes the devices and services that the config describes.
func (s *upnpServer) buildTree() *igdDevice {
	v := s.config.Version
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
	return root
}

// connections are the services of a WANConnectionDevice.
func (s *upnpServer) connections(i int, connected bool) []*igdService {
	var all []*igdService
	choice, v := s.config.Description.Connections, s.config.Version
	if choice != quirks.ConnectionIP {
		all = append(all, s.service(wanPPP, 1, i, connected && choice == quirks.ConnectionPPP))
	}
	if choice != quirks.ConnectionPPP {
		all = append(all, s.service(wanIP, v, i, connected))
	}
	if v == 2 {
		all = append(all, s.service(ipv6Firewall, 1, i, connected))
	}
	return all
}

func (s *upnpServer) service(kind serviceKind, version, i int, connected bool) *igdService {
	v := &igdService{
		kind: kind, typ: s.urn("service", string(kind), version), connected: connected,
		id: "urn:upnp-org:serviceId:" + ids[kind], name: fmt.Sprintf("%d/%s", i, kind),
	}
	switch s.config.Description.ControlURL {
	case quirks.ControlRelative:
		v.path = path.Join(path.Dir(s.config.Description.Path), "ctl", v.name)
	case quirks.ControlColon:
		v.path = path.Join(path.Dir(s.config.Description.Path), s.config.UDN, v.name)
	default:
		v.path = "/ctl/" + v.name
	}
	return v
}

// urn is the type of a device or service.
func (s *upnpServer) urn(what, name string, version int) string {
	domain := "schemas-upnp-org"
	if s.config.Description.DSLForum {
		domain = "dslforum-org"
	}
	return fmt.Sprintf("urn:%s:%s:%s:%d", domain, what, name, version)
}

// controlURL is how the description writes a service's. The base is where the
// description was asked for.
func (s *upnpServer) controlURL(v *igdService, base string) string {
	switch s.config.Description.ControlURL {
	case quirks.ControlAbsolute:
		return base + v.path
	case quirks.ControlRelative, quirks.ControlRelativeToRoot:
		return "ctl/" + v.name
	case quirks.ControlColon:
		return s.config.UDN + "/" + v.name
	case quirks.ControlSpaces:
		return "\n\t " + v.path + " \r\n"
	case quirks.ControlWrongHost:
		return wrongBase + v.path
	case quirks.ControlEmpty:
		return ""
	}
	return v.path
}

// wrongBase is on loopback, lest a client that believes it asks a stranger.
const wrongBase = "http://127.9.9.9:1"

// walk yields the device and those in it, each before its own.
func (d *igdDevice) walk(yield func(*igdDevice) bool) bool {
	if !yield(d) {
		return false
	}
	for _, in := range d.devices {
		if !in.walk(yield) {
			return false
		}
	}
	return true
}

// serviceAt finds the service that is controlled at a path, or nil.
func (s *upnpServer) serviceAt(path string) *igdService {
	var found *igdService
	s.root.walk(func(d *igdDevice) bool {
		for _, v := range d.services {
			if v.path == path {
				found = v
			}
		}
		return found == nil
	})
	return found
}
