package upnp

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/natforward/goforward/backends"
)

// maxURL is the maximum length of a URL from a device.
const maxURL = 1024

// endpoint is a URL whose host is an IP address, with the address to connect
// to.
type endpoint struct {
	url  *url.URL
	addr netip.AddrPort // with the zone of url
}

// parseEndpoint parses a plain http URL whose host is an IP literal. Its error
// wraps backends.ErrInvalid.
func parseEndpoint(raw string) (endpoint, error) {
	if len(raw) > maxURL {
		return endpoint{}, fmt.Errorf("%w: URL of %d bytes", backends.ErrInvalid, len(raw))
	}
	u, err := url.Parse(raw)
	if err != nil {
		return endpoint{}, fmt.Errorf("%w: not a URL: %q", backends.ErrInvalid, raw)
	}
	addr, err := literalHost(u)
	if err != nil {
		return endpoint{}, err
	}
	return newEndpoint(addr, u), nil
}

// newEndpoint returns the endpoint at an address with the path and the query of
// u.
func newEndpoint(addr netip.AddrPort, u *url.URL) endpoint {
	path := *u
	path.Scheme, path.Host, path.User, path.Fragment, path.RawFragment = "http", addr.String(), nil, "", ""
	if path.Path == "" {
		path.Path = "/"
	}
	path.RawQuery = escapeQuery(path.RawQuery)
	return endpoint{url: &path, addr: addr}
}

// escapeQuery escapes the bytes that package url accepts but that are invalid
// in a request line.
func escapeQuery(query string) string {
	var b strings.Builder
	for _, c := range []byte(query) {
		if c <= ' ' || c > '~' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// literalHost returns the address and the port of a plain http URL.
func literalHost(u *url.URL) (netip.AddrPort, error) {
	switch {
	case u.Scheme != "http" || u.Opaque != "":
		return netip.AddrPort{}, fmt.Errorf("%w: not a plain http URL: %q", backends.ErrInvalid, u.Redacted())
	case u.User != nil:
		return netip.AddrPort{}, fmt.Errorf("%w: a URL with credentials", backends.ErrInvalid)
	}
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil || host.IsUnspecified() || host.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%w: the host is not a usable IP address: %q", backends.ErrInvalid, u.Hostname())
	}
	port, err := portOf(u)
	return netip.AddrPortFrom(host.Unmap(), port), err
}

// portOf returns the port of a URL, or 80 if it has none.
func portOf(u *url.URL) (uint16, error) {
	if u.Port() == "" {
		return 80, nil
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%w: port %q", backends.ErrInvalid, u.Port())
	}
	return uint16(port), nil
}

// hostHeader returns the value of the Host header. It has no zone, because
// zones are local to this host.
func (e endpoint) hostHeader() string {
	return netip.AddrPortFrom(e.addr.Addr().WithZone(""), e.addr.Port()).String()
}

// controlBases returns the base URLs for relative control URLs, the most likely
// first. These are URLBase (removed in UPnP Device Architecture 1.1), if its
// host is the device, and the URL of the description.
func controlBases(urlBase string, from endpoint) []endpoint {
	u, err := url.Parse(strings.TrimSpace(urlBase))
	if err != nil || u.Host == "" {
		return []endpoint{from}
	}
	base, err := literalHost(u)
	if err != nil || base.Addr().WithZone("") != from.addr.Addr().WithZone("") {
		return []endpoint{from}
	}
	port := base.Port()
	if u.Port() == "" { // some devices omit their own port
		port = from.addr.Port()
	}
	return []endpoint{newEndpoint(netip.AddrPortFrom(from.addr.Addr(), port), u), from}
}

// controlURLs returns the possible interpretations of a control URL, the most
// likely first. There are at most three, and all are on the device. There are
// none if raw is empty or not plain http.
func controlURLs(raw string, bases []endpoint) []string {
	raw = strings.TrimSpace(raw)
	if raw == "" || len(raw) > maxURL {
		return nil
	}
	var urls []string
	add := func(base endpoint, ref *url.URL) {
		s := newEndpoint(base.addr, ref).url.String()
		if len(urls) < 3 && len(s) <= maxURL && !slices.Contains(urls, s) {
			urls = append(urls, s)
		}
	}
	if scheme, _, ok := strings.Cut(raw, "://"); ok && !strings.ContainsAny(scheme, "/?") {
		u, err := url.Parse(raw)
		if err != nil || !strings.EqualFold(scheme, "http") {
			return nil
		}
		rewriteToDevice(u, bases, add)
		return urls
	}
	for _, base := range bases {
		if !strings.HasPrefix(raw, "/") {
			add(base, reference(path.Dir(base.url.Path), raw))
		}
	}
	for _, base := range bases {
		add(base, reference("/", raw))
	}
	return urls
}

// rewriteToDevice replaces the host of an absolute URL by the device's address.
// It adds the URL first with its own port, then with the port of the
// description.
func rewriteToDevice(u *url.URL, bases []endpoint, add func(endpoint, *url.URL)) {
	from := bases[len(bases)-1]
	if port, err := portOf(u); err == nil {
		add(endpoint{addr: netip.AddrPortFrom(from.addr.Addr(), port)}, u)
	}
	add(from, u)
}

// reference returns a URL with the path and query of raw. A path that does not
// begin with a slash is relative to dir. A colon in its first segment is part of
// the path and does not end a scheme.
func reference(dir, raw string) *url.URL {
	if !strings.HasPrefix(raw, "/") {
		raw = strings.TrimSuffix(dir, "/") + "/" + raw
	}
	p, query, _ := strings.Cut(raw, "?")
	u := &url.URL{Path: p, RawQuery: query}
	if unescaped, err := url.PathUnescape(p); err == nil {
		u.Path, u.RawPath = unescaped, p
	}
	return u
}

// rewriteLocation returns a plain http URL for the LOCATION header of a search
// response. It keeps the path and the port, and replaces the host by the
// responder's address, or by the gateway's if the header names the gateway. The
// responder must be the gateway or on a network of this host. It may be on
// loopback only if the gateway is. The error wraps backends.ErrInvalid.
func rewriteLocation(location string, from netip.AddrPort, gateway netip.Addr, onLink func(netip.Addr) bool) (string, error) {
	responder, gateway := from.Addr().Unmap(), gateway.Unmap()
	if err := checkResponder(responder, gateway, onLink); err != nil {
		return "", err
	}
	location = stripZone(strings.TrimSpace(location))
	if len(location) > maxURL {
		return "", fmt.Errorf("%w: LOCATION of %d bytes", backends.ErrInvalid, len(location))
	}
	u, err := url.Parse(location)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: LOCATION %q is not a URL", backends.ErrInvalid, location)
	case u.Scheme != "http" || u.Opaque != "" || u.Host == "":
		return "", fmt.Errorf("%w: LOCATION %q is not plain http", backends.ErrInvalid, u.Redacted())
	case u.User != nil:
		return "", fmt.Errorf("%w: LOCATION with credentials", backends.ErrInvalid)
	}
	port, err := portOf(u)
	if err != nil {
		return "", fmt.Errorf("LOCATION: %w", err)
	}
	host := responder
	// A gateway may respond from an address other than the one at which it
	// serves its description.
	if hostAddr, err := netip.ParseAddr(u.Hostname()); err == nil && hostAddr.Unmap() == gateway.WithZone("") {
		host = gateway
	}
	return newEndpoint(netip.AddrPortFrom(host, port), u).url.String(), nil
}

func checkResponder(responder, gateway netip.Addr, onLink func(netip.Addr) bool) error {
	switch {
	case !responder.IsValid() || responder.IsUnspecified() || responder.IsMulticast():
		return fmt.Errorf("%w: a response from %v", backends.ErrInvalid, responder)
	case responder == gateway:
		return nil
	case responder.IsLoopback() && !gateway.IsLoopback():
		return fmt.Errorf("%w: a response from this host, %v", backends.ErrInvalid, responder)
	case !onLink(responder):
		return fmt.Errorf("%w: a response from %v, which is not on a network of this host", backends.ErrInvalid, responder)
	}
	return nil
}

// stripZone removes the zone from the host of a URL. The zone is an interface
// index of the device, and many devices do not escape it.
func stripZone(location string) string {
	start := strings.IndexByte(location, '[')
	end := strings.IndexByte(location, ']')
	if start < 0 || end < start || strings.ContainsAny(location[:start], "?#") {
		return location
	}
	if zone := strings.IndexByte(location[start:end], '%'); zone >= 0 {
		return location[:start+zone] + location[end:]
	}
	return location
}
