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

// The bounds of descriptions.
const (
	maxDescriptionElements = 4096
	maxServices            = 32
)

// Device is what a root description says of a gateway, bounded and checked.
type Device struct {
	// URL is where the description is.
	URL string
	// Host is the device's address, with our zone where it is link-local.
	Host netip.Addr
	// Local is this host's address as the device sees it, or the zero Addr
	// where the description did not come over a connection.
	Local netip.Addr
	// UDN is the root device's unique name, and the rest what people know it by:
	// printable, at most 256 bytes, perhaps empty.
	UDN, FriendlyName, Manufacturer, Model, ModelNumber string
	// Services are those of a gateway, of all embedded devices, in document order.
	Services []Service
}

// ServiceKind is what a service is for.
type ServiceKind uint8

// The kinds of services.
const (
	// IPConnection is WANIPConnection, versions 1 and 2: port mappings.
	IPConnection ServiceKind = iota + 1
	// PPPConnection is WANPPPConnection: the same over a dialled line.
	PPPConnection
	// IPv6Firewall is WANIPv6FirewallControl: pinholes.
	IPv6Firewall
)

// String returns the name that UPnP has for the kind.
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
	// Type is the service's type exactly as advertised.
	Type string
	// ID is the service's id, printable. Nothing hangs on it.
	ID string
	// ControlURL is where its actions go: absolute, on the device's address.
	ControlURL string
	// UDN is the unique name of the device that holds the service.
	UDN string

	alternates [2]string // other readings of the control URL, or empty
}

// Kind says what the service is for, 0 where it is for nothing here.
func (s Service) Kind() ServiceKind {
	kind, _ := parseType(s.Type)
	return kind
}

// Version returns the version in the service's type, 0 where there is none.
func (s Service) Version() int {
	_, version := parseType(s.Type)
	return version
}

// parseType reads urn:<anybody>:service:<name>:<version>. Not all devices use
// the standard's domain.
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

// validType reports whether a service type may stand in a header and in an
// XML attribute as it is.
func validType(s string) bool {
	valid := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune(":._-", r)
	}
	return s != "" && len(s) <= 128 && strings.IndexFunc(s, func(r rune) bool { return !valid(r) }) < 0
}

// Describe fetches a root description and reads it. rawURL is plain http and
// names an IP address, with a zone where it is link-local.
//
// Its error wraps backends.ErrInvalid for another URL, backends.ErrNoReply
// where nothing answers, backends.ErrMalformed (also as *[HTTPError]) where the
// answer is no description, backends.ErrUnsupported where the device is no
// gateway, or the cause of the context's end.
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

// ParseDescription reads a root description that came from base, whose host is
// an IP literal (UPnP Device Architecture 1.0, section 2.1). What cannot be
// read of it is left out. Its error wraps backends.ErrInvalid for another base,
// backends.ErrMalformed where b is no description, backends.ErrUnsupported
// where it is none of a gateway.
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
		return nil, fmt.Errorf("%w: device %q is no gateway", backends.ErrUnsupported, d.FriendlyName)
	}
	return d, nil
}

// newService checks a service. False: it is for nothing here, or has no URL.
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

// plainDescription is what is read of a description, as the standard writes it.
// What is left out (icons, sizes, dates) is what devices write wrongly.
func normaliseDescription(root *element) []byte {
	var b bytes.Buffer
	root.writeDescription(&b, "root")
	return b.Bytes()
}

// descriptionElements are the elements that are read, with those that hold others.
var descriptionElements = map[string]struct {
	name  string
	holds bool
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
		case spec.holds:
			c.writeDescription(b, spec.name)
		case spec.name != "":
			writeElement(b, spec.name, c.text)
		}
	}
	b.WriteString("</" + name + ">")
}
