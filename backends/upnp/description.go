package upnp

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lazyregexp"
	"github.com/natforward/goforward/internal/lenient"
)

// The limits for descriptions.
const (
	maxDescriptionElements = 4096
	maxServices            = 32
)

// Device is the content of a gateway's root description, validated and limited in size.
type Device struct {
	// URL is the URL of the description.
	URL string
	// Host is the address of the device. A link-local address has a zone, which
	// names an interface of this host.
	Host netip.Addr
	// Local is the address of this host as the device sees it. It is the zero
	// Addr if the description was not fetched over a connection.
	Local netip.Addr
	// UDN is the unique device name of the root device. The other fields describe it to users.
	// All are printable, have at most 256 bytes, and may be empty.
	UDN, FriendlyName, Manufacturer, Model, ModelNumber string
	// Services contains the gateway services of all embedded devices, in document order.
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

var kindNames = []string{IPConnection: "WANIPConnection", PPPConnection: "WANPPPConnection", IPv6Firewall: "WANIPv6FirewallControl"}

// String returns the name of the kind in UPnP.
func (k ServiceKind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("service kind %d", uint8(k))
	}
	return kindNames[k]
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
	// EventURL is the URL for subscriptions to the events of the service, absolute and with
	// the address of the device as its host like ControlURL. It is empty if the service has no
	// events.
	EventURL string
	// UDN is the unique name of the device that contains the service.
	UDN string

	alternates [maxControlURLs - 1]string // other possible control URLs, or empty
}

// Kind returns the kind of the service. It is 0 for a service that this package does not use.
func (s Service) Kind() ServiceKind {
	kind, _ := parseType(s.Type)
	return kind
}

// Version returns the version in the type of the service, or 0 if there is none.
func (s Service) Version() int {
	_, version := parseType(s.Type)
	return version
}

// parseType returns the kind and the version in a service type, or 0. The domain is ignored,
// because some devices do not use the standard one.
func parseType(s string) (ServiceKind, int) {
	if parts := strings.Split(s, ":"); len(parts) == 5 && strings.EqualFold(parts[0], "urn") && strings.EqualFold(parts[2], "service") {
		version, err := strconv.ParseUint(parts[4], 10, 8)
		kind := slices.IndexFunc(kindNames, func(name string) bool { return strings.EqualFold(name, parts[3]) })
		if err == nil && kind > 0 {
			return ServiceKind(kind), int(version)
		}
	}
	return 0, 0
}

// validType reports whether a service type is valid in an HTTP header and in an
// XML attribute without escaping.
func validType(s string) bool {
	const valid = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz:._-"
	return 0 < len(s) && len(s) <= 128 && strings.Trim(s, valid) == ""
}

// Describe fetches and parses a root description. rawURL is a plain http URL
// whose host is an IP address. A link-local address needs a zone.
//
// The error wraps backends.ErrInvalid if rawURL is any other URL, backends.ErrNoReply if there
// is no response, backends.ErrMalformed (possibly as *[HTTPError]) if the response is not a
// description, and backends.ErrUnsupported if the device is not a gateway. If ctx ends, the
// error wraps its cause.
func Describe(ctx context.Context, rawURL string, config ClientConfig) (*Device, error) {
	e, err := parseIPURL(rawURL)
	if err == nil {
		err = config.check(e.addr.Addr())
	}
	var d *Device
	if err == nil {
		err = config.exchange(ctx, e, request{limit: maxDescription, root: "root"}, func(resp lenient.Response) (err error) {
			if resp.Status != statusOK {
				return &HTTPError{Status: resp.Status}
			}
			if d, err = parseDescription(resp.Body, e); err == nil {
				d.Local = resp.Local
			}
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("upnp: description at %s: %w", printable(rawURL), err)
	}
	return d, nil
}

// ParseDescription parses a root description that was fetched from base, whose host is an IP
// literal (UPnP Device Architecture 1.0, section 2.1). It ignores the parts that it cannot read.
// The error wraps backends.ErrInvalid if base is any other URL, backends.ErrMalformed if b is
// not a description, or backends.ErrUnsupported if the description does not describe a gateway.
func ParseDescription(b []byte, base *url.URL) (*Device, error) {
	from, err := parseIPURL(base.String())
	var d *Device
	if err == nil {
		d, err = parseDescription(b, from)
	}
	if err != nil {
		return nil, fmt.Errorf("upnp: description: %w", err)
	}
	return d, nil
}

func parseDescription(b []byte, from ipURL) (*Device, error) {
	document, err := lenient.Parse(b, maxDescriptionElements)
	if err != nil {
		return nil, err
	}
	roots, devices := document.At("root"), document.At("root", "device")
	if len(roots) == 0 {
		return nil, malformed("no description in %d bytes", len(b))
	}
	d := &Device{URL: from.url.String(), Host: from.addr.Addr()}
	if len(devices) > 0 {
		root := devices[0]
		d.UDN, d.FriendlyName, d.Manufacturer = printable(root.Value("UDN")), printable(root.Value("friendlyName")), printable(root.Value("manufacturer"))
		d.Model, d.ModelNumber = printable(root.Value("modelName")), printable(root.Value("modelNumber"))
		d.addServices(root, roots[0].Value("URLBase"), from)
	}
	if len(d.Services) == 0 {
		return nil, fmt.Errorf("%w: device %q is not a gateway", backends.ErrUnsupported, d.FriendlyName)
	}
	return d, nil
}

// addServices adds the services of a device element and of the devices in it. It ignores the other
// fields (icons, sizes, dates), which devices often write incorrectly.
func (d *Device) addServices(device *lenient.Element, base string, from ipURL) {
	for _, s := range device.At("serviceList", "service") {
		service := Service{Type: s.Value("serviceType"), ID: printable(s.Value("serviceId")), UDN: printable(device.Value("UDN"))}
		urls := controlURLs(s.Value("controlURL"), base, from)
		if validType(service.Type) && service.Kind() != 0 && len(urls) > 0 && len(d.Services) < maxServices {
			service.ControlURL = urls[0]
			copy(service.alternates[:], urls[1:])
			if events := controlURLs(s.Value("eventSubURL"), base, from); len(events) > 0 {
				service.EventURL = events[0]
			}
			d.Services = append(d.Services, service)
		}
	}
	for _, embedded := range device.At("deviceList", "device") {
		d.addServices(embedded, base, from)
	}
}

// maxURL is the maximum length of a URL from a device.
const maxURL = 1024

// ipURL is a URL whose host is an IP address, with the address to connect to.
type ipURL struct {
	url  *url.URL
	addr netip.AddrPort // with the zone of url
}

// parseIPURL parses a plain http URL whose host is an IP literal. Its error
// wraps backends.ErrInvalid.
func parseIPURL(raw string) (ipURL, error) {
	u, port, err := parsePlainHTTP(raw)
	if err != nil {
		return ipURL{}, err
	}
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil || host.IsUnspecified() || host.IsMulticast() {
		return ipURL{}, fmt.Errorf("%w: the host is not a usable IP address: %q", backends.ErrInvalid, u.Hostname())
	}
	return newIPURL(netip.AddrPortFrom(host.Unmap(), port), u), nil
}

// parsePlainHTTP parses a plain http URL without credentials. It also returns the
// port. Its error wraps backends.ErrInvalid.
func parsePlainHTTP(raw string) (*url.URL, uint16, error) {
	u, err := url.Parse(raw)
	switch {
	case len(raw) > maxURL:
		return nil, 0, fmt.Errorf("%w: URL of %d bytes", backends.ErrInvalid, len(raw))
	case err != nil:
		return nil, 0, fmt.Errorf("%w: not a URL: %q", backends.ErrInvalid, raw)
	case u.Scheme != "http" || u.Opaque != "" || u.Host == "":
		return nil, 0, fmt.Errorf("%w: not a plain http URL: %q", backends.ErrInvalid, u.Redacted())
	case u.User != nil:
		return nil, 0, fmt.Errorf("%w: the URL must not contain credentials", backends.ErrInvalid)
	}
	port, err := portOf(u)
	return u, port, err
}

// newIPURL returns the URL at an address with the path and the query of u.
func newIPURL(addr netip.AddrPort, u *url.URL) ipURL {
	path := *u
	path.Scheme, path.Host, path.User, path.Fragment, path.RawFragment = "http", addr.String(), nil, "", ""
	if path.Path == "" {
		path.Path = "/"
	}
	if path.RawQuery != "" {
		path.RawQuery = unescaped().ReplaceAllStringFunc(path.RawQuery, url.PathEscape)
	}
	return ipURL{url: &path, addr: addr}
}

// unescaped matches the bytes in a query that package url accepts but that are
// invalid in a request line.
var unescaped = lazyregexp.New(`[^!-~]+`)

// portOf returns the port of a URL, or 80 if it has none.
func portOf(u *url.URL) (uint16, error) {
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%w: port %q", backends.ErrInvalid, u.Port())
	}
	return uint16(port), nil
}

// hostHeader returns the value of the Host header. It has no zone, because
// zones are local to this host, and no port if the port is the default of HTTP.
func (e ipURL) hostHeader() string { return strings.TrimSuffix(e.withoutZone(), ":80") }

// withoutZone returns the address and port without the zone.
func (e ipURL) withoutZone() string {
	return netip.AddrPortFrom(e.addr.Addr().WithZone(""), e.addr.Port()).String()
}

// maxControlURLs is the maximum number of interpretations of a control URL.
const maxControlURLs = 4

// controlURLs returns the possible interpretations of a control URL, the most likely first. Its
// reference is resolved as RFC 3986 says, against URLBase (removed in UPnP Device Architecture
// 1.1), against the URL of the description, and, if it is relative, against their roots. All
// URLs are on the device. There are none if raw is empty or not plain http.
func controlURLs(raw, urlBase string, from ipURL) []string {
	raw = strings.TrimSpace(raw)
	ref := parseReference(raw)
	if raw == "" || len(raw) > maxURL || ref == nil {
		return nil
	}
	bases := []ipURL{from}
	if u, _, err := parsePlainHTTP(strings.TrimSpace(urlBase)); err == nil {
		bases = append(from.onPortOf(u, u.Port() == ""), from)
	}
	var urls []string
	add := func(base ipURL, u *url.URL) {
		s := newIPURL(base.addr, u).url.String()
		if len(urls) < maxControlURLs && len(s) <= maxURL && !slices.Contains(urls, s) {
			urls = append(urls, s)
		}
	}
	if ref.Host != "" {
		for _, at := range append(from.onPortOf(ref, ref.Scheme == "" && ref.Port() == ""), from) {
			add(at, ref)
		}
		if ref.Scheme != "" {
			return urls
		}
		ref = pathReference(raw)
	}
	for _, base := range bases {
		add(base, base.url.ResolveReference(ref))
	}
	for _, base := range bases {
		add(base, (&url.URL{Path: "/"}).ResolveReference(ref))
	}
	return urls
}

// onPortOf returns u at the address of the device, because its host may be a name
// or an earlier address. If u has no port, the port is 80, or possibly e's port.
func (e ipURL) onPortOf(u *url.URL, orOwn bool) (urls []ipURL) {
	if orOwn {
		urls = append(urls, newIPURL(e.addr, u))
	}
	if port, err := portOf(u); err == nil {
		urls = append(urls, newIPURL(netip.AddrPortFrom(e.addr.Addr(), port), u))
	}
	return urls
}

// parseReference parses a relative or plain http URL. It returns nil for any other
// scheme. A colon in the first segment of a path, as in uuid:1/control, does not
// end a scheme, but a host may precede it: 192.168.1.1:5000/control.
func parseReference(raw string) *url.URL {
	u, err := url.Parse(raw)
	scheme, _, absolute := strings.Cut(raw, "://")
	switch absolute = absolute && !strings.ContainsAny(scheme, "/?"); {
	case absolute && (err != nil || u.Scheme != "http"):
		return nil
	case absolute, err == nil && u.Scheme == "":
		return u
	}
	if u, err := url.Parse("//" + raw); err == nil && u.Port() != "" {
		return u
	}
	return pathReference(raw)
}

// pathReference reads a reference as a path and a query, even if the path begins
// with two slashes, or has a colon or an invalid escape in it.
func pathReference(raw string) *url.URL {
	path, query, _ := strings.Cut(raw, "?")
	return &url.URL{Path: path, RawQuery: query}
}

// rewriteLocation returns a plain http URL for the LOCATION header of a search
// response. It keeps the path and the port, and replaces the host by the
// responder's address, or by the gateway's if the header names the gateway. The
// responder must be the gateway or on a network of this host. It may be on
// loopback only if the gateway is. The error wraps backends.ErrInvalid.
func rewriteLocation(location string, from netip.AddrPort, gateway netip.Addr, onLink func(netip.Addr) bool) (string, error) {
	responder, gateway := from.Addr().Unmap(), gateway.Unmap()
	switch {
	case !responder.IsValid() || responder.IsUnspecified() || responder.IsMulticast():
		return "", fmt.Errorf("%w: a response from %v", backends.ErrInvalid, responder)
	case responder.IsLoopback() && !gateway.IsLoopback():
		return "", fmt.Errorf("%w: a response from this host, %v", backends.ErrInvalid, responder)
	case responder != gateway && !onLink(responder):
		return "", fmt.Errorf("%w: a response from %v, which is not on a network of this host", backends.ErrInvalid, responder)
	}
	location = strings.TrimSpace(location)
	if strings.Contains(location, "%") {
		location = zone().ReplaceAllString(location, "$1]")
	}
	u, port, err := parsePlainHTTP(location)
	if err != nil {
		return "", fmt.Errorf("LOCATION: %w", err)
	}
	host := responder
	// A gateway may respond from an address other than the one at which it
	// serves its description.
	if hostAddr, err := netip.ParseAddr(u.Hostname()); err == nil && hostAddr.Unmap() == gateway.WithZone("") {
		host = gateway
	}
	return newIPURL(netip.AddrPortFrom(host, port), u).url.String(), nil
}

// zone matches the zone in the host of a URL. It is an interface index of the
// device, and many devices do not escape it.
var zone = lazyregexp.New(`^([^?#[]*\[[^\]%]*)%[^\]]*\]`)
