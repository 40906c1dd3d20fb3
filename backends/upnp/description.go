package upnp

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/huin/goupnp"

	"github.com/natforward/goforward/backends"
)

// The limits for descriptions.
const (
	maxDescriptionElements = 4096
	maxServices            = 32
)

// Device is the content of a gateway's root description, validated and limited
// in size.
type Device struct {
	// URL is the URL of the description.
	URL string
	// Host is the address of the device. A link-local address has a zone, which
	// names an interface of this host.
	Host netip.Addr
	// Local is the address of this host as the device sees it. It is the zero
	// Addr if the description was not fetched over a connection.
	Local netip.Addr
	// UDN is the unique device name of the root device. The other fields
	// describe it to users. All are printable, have at most 256 bytes, and may
	// be empty.
	UDN, FriendlyName, Manufacturer, Model, ModelNumber string
	// Services contains the gateway services of all embedded devices, in
	// document order.
	Services []Service
}

// ServiceKind is the purpose of a service.
type ServiceKind uint8

// The kinds of services.
const (
	// IPConnection is WANIPConnection, versions 1 and 2. It maps ports.
	IPConnection ServiceKind = iota + 1
	// PPPConnection is WANPPPConnection. It maps ports of a dial-up connection.
	PPPConnection
	// IPv6Firewall is WANIPv6FirewallControl. It opens pinholes.
	IPv6Firewall
)

// String returns the name of the kind in UPnP.
func (k ServiceKind) String() string {
	switch k {
	case IPConnection:
		return "WANIPConnection"
	case PPPConnection:
		return "WANPPPConnection"
	case IPv6Firewall:
		return "WANIPv6FirewallControl"
	}
	return fmt.Sprintf("service kind %d", uint8(k))
}

// Service is a service of a gateway.
type Service struct {
	// Type is the type of the service, exactly as advertised.
	Type string
	// ID is the id of the service, printable. This package does not use it.
	ID string
	// ControlURL is the URL for the actions of the service. It is absolute, and
	// its host is the address of the device.
	ControlURL string
	// UDN is the unique name of the device that contains the service.
	UDN string

	alternates [2]string // other possible control URLs, or empty
}

// Kind returns the kind of the service. It is 0 for a service that this package
// does not use.
func (s Service) Kind() ServiceKind {
	kind, _ := parseType(s.Type)
	return kind
}

// Version returns the version in the type of the service, or 0 if there is
// none.
func (s Service) Version() int {
	_, version := parseType(s.Type)
	return version
}

// parseType parses a service type of the form
// urn:<domain>:service:<name>:<version>. It accepts any domain, because some
// devices do not use the standard one.
func parseType(s string) (ServiceKind, int) {
	parts := strings.Split(s, ":")
	if len(parts) != 5 || !strings.EqualFold(parts[0], "urn") || !strings.EqualFold(parts[2], "service") {
		return 0, 0
	}
	version, err := strconv.ParseUint(parts[4], 10, 8)
	if err != nil {
		return 0, 0
	}
	for _, kind := range []ServiceKind{IPConnection, PPPConnection, IPv6Firewall} {
		if strings.EqualFold(parts[3], kind.String()) {
			return kind, int(version)
		}
	}
	return 0, 0
}

// validType reports whether a service type is valid in an HTTP header and in an
// XML attribute without escaping.
func validType(s string) bool {
	valid := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune(":._-", r)
	}
	return s != "" && len(s) <= 128 && strings.IndexFunc(s, func(r rune) bool { return !valid(r) }) < 0
}

// Describe fetches and parses a root description. rawURL is a plain http URL
// whose host is an IP address. A link-local address needs a zone.
//
// The error wraps backends.ErrInvalid if rawURL is any other URL,
// backends.ErrNoReply if there is no response, backends.ErrMalformed (possibly
// as *[HTTPError]) if the response is not a description, and
// backends.ErrUnsupported if the device is not a gateway. If ctx ends, the error
// wraps its cause.
func Describe(ctx context.Context, rawURL string, config ClientConfig) (*Device, error) {
	e, err := parseEndpoint(rawURL)
	if err == nil {
		err = config.check(e.addr.Addr())
	}
	var d *Device
	if err == nil {
		d, err = config.describe(ctx, e)
	}
	if err != nil {
		return nil, fmt.Errorf("upnp: description: %w", err)
	}
	return d, nil
}

func (c ClientConfig) describe(ctx context.Context, e endpoint) (*Device, error) {
	var resp response
	var local netip.Addr
	var err error
	for _, style := range []requestStyle{modern, legacy} {
		resp, local, err = c.send(ctx, e, request{bytes: e.get(style), limit: maxDescription, root: "root", what: "description"})
		if err != nil {
			return nil, err
		}
		if !resp.notUnderstood() {
			break
		}
	}
	if resp.status != http.StatusOK {
		return nil, &HTTPError{Status: resp.status}
	}
	d, err := parseDescription(resp.body, e)
	if err != nil {
		return nil, err
	}
	d.Local = local
	return d, nil
}

// ParseDescription parses a root description that was fetched from base, whose
// host is an IP literal (UPnP Device Architecture 1.0, section 2.1). It ignores
// the parts that it cannot read. The error wraps backends.ErrInvalid if base is
// any other URL, backends.ErrMalformed if b is not a description, or
// backends.ErrUnsupported if the description does not describe a gateway.
func ParseDescription(b []byte, base *url.URL) (*Device, error) {
	addr, err := literalHost(base)
	var d *Device
	if err == nil {
		d, err = parseDescription(b, newEndpoint(addr, base))
	}
	if err != nil {
		return nil, fmt.Errorf("upnp: description: %w", err)
	}
	return d, nil
}

func parseDescription(b []byte, from endpoint) (*Device, error) {
	document, err := parseXML(b, maxDescriptionElements)
	if err != nil {
		return nil, err
	}
	root := document.child("root")
	if root == nil {
		return nil, malformed("no description in %d bytes", len(b))
	}
	var decoded goupnp.RootDevice
	if err := xml.Unmarshal(normaliseDescription(root), &decoded); err != nil {
		return nil, malformed("%v", err)
	}
	d := &Device{
		URL: from.url.String(), Host: from.addr.Addr(), UDN: printable(decoded.Device.UDN),
		FriendlyName: printable(decoded.Device.FriendlyName), Manufacturer: printable(decoded.Device.Manufacturer),
		Model: printable(decoded.Device.ModelName), ModelNumber: printable(decoded.Device.ModelNumber),
	}
	bases := controlBases(decoded.URLBaseStr, from)
	decoded.Device.VisitDevices(func(holder *goupnp.Device) {
		for _, s := range holder.Services {
			if service, ok := newService(s, holder.UDN, bases); ok && len(d.Services) < maxServices {
				d.Services = append(d.Services, service)
			}
		}
	})
	if len(d.Services) == 0 {
		return nil, fmt.Errorf("%w: device %q is not a gateway", backends.ErrUnsupported, d.FriendlyName)
	}
	return d, nil
}

// newService validates a service. It returns false if this package does not use
// the service, or if the service has no control URL.
func newService(s goupnp.Service, udn string, bases []endpoint) (Service, bool) {
	service := Service{Type: strings.TrimSpace(s.ServiceType), ID: printable(s.ServiceId), UDN: printable(udn)}
	if !validType(service.Type) || service.Kind() == 0 {
		return Service{}, false
	}
	urls := controlURLs(s.ControlURL.Str, bases)
	if len(urls) == 0 {
		return Service{}, false
	}
	service.ControlURL = urls[0]
	copy(service.alternates[:], urls[1:])
	return service, true
}

// normaliseDescription returns a description in its standard form, reduced to
// the elements that this package uses. Devices often write the other elements
// (icons, sizes, dates) incorrectly.
func normaliseDescription(root *element) []byte {
	var b bytes.Buffer
	root.writeDescription(&b, "root")
	return b.Bytes()
}

// descriptionElements contains the elements that are used, and the elements that
// contain them. The keys are the names in lower case.
var descriptionElements = map[string]struct {
	name        string
	isContainer bool
}{
	"urlbase": {"URLBase", false}, "device": {"device", true}, "devicelist": {"deviceList", true},
	"friendlyname": {"friendlyName", false}, "manufacturer": {"manufacturer", false},
	"modelname": {"modelName", false}, "modelnumber": {"modelNumber", false}, "udn": {"UDN", false},
	"servicelist": {"serviceList", true}, "service": {"service", true}, "servicetype": {"serviceType", false},
	"serviceid": {"serviceId", false}, "controlurl": {"controlURL", false},
}

func (e *element) writeDescription(b *bytes.Buffer, name string) {
	b.WriteString("<" + name + ">")
	for _, c := range e.children {
		switch spec := descriptionElements[strings.ToLower(c.name)]; {
		case spec.isContainer:
			c.writeDescription(b, spec.name)
		case spec.name != "":
			writeElement(b, spec.name, c.text)
		}
	}
	b.WriteString("</" + name + ">")
}
