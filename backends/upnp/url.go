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

// maxURL bounds the URLs that devices give.
const maxURL = 1024

// endpoint is a URL that names no name: where to connect, and what to ask for.
type endpoint struct {
	url  *url.URL
	addr netip.AddrPort // with the zone of url
}

// parseEndpoint reads a plain http URL whose host is an IP literal. Its error
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

// newEndpoint is the path and query of u at an address.
func newEndpoint(addr netip.AddrPort, u *url.URL) endpoint {
	path := *u
	path.Scheme, path.Host, path.User, path.Fragment, path.RawFragment = "http", addr.String(), nil, "", ""
	if path.Path == "" {
		path.Path = "/"
	}
	path.RawQuery = escapeQuery(path.RawQuery)
	return endpoint{url: &path, addr: addr}
}

// plainQuery escapes what package url lets pass and a request line does not.
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

// literalHost is the address and port that a plain http URL names.
func literalHost(u *url.URL) (netip.AddrPort, error) {
	switch {
	case u.Scheme != "http" || u.Opaque != "":
		return netip.AddrPort{}, fmt.Errorf("%w: not a plain http URL: %q", backends.ErrInvalid, u.Redacted())
	case u.User != nil:
		return netip.AddrPort{}, fmt.Errorf("%w: a URL with credentials", backends.ErrInvalid)
	}
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil || host.IsUnspecified() || host.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%w: no IP address of a host: %q", backends.ErrInvalid, u.Hostname())
	}
	port, err := portOf(u)
	return netip.AddrPortFrom(host.Unmap(), port), err
}

// portOf is the port that a URL names, 80 where it names none.
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

// host is the Host header: devices know no zones of ours.
func (e endpoint) hostHeader() string {
	return netip.AddrPortFrom(e.addr.Addr().WithZone(""), e.addr.Port()).String()
}

// controlBases are the URLs that control URLs may be relative to, best guess
// first: URLBase (gone since UPnP Device Architecture 1.1) where it is on the
// device, then where the description came from.
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
	if u.Port() == "" { // some devices forget their own
		port = from.addr.Port()
	}
	return []endpoint{newEndpoint(netip.AddrPortFrom(from.addr.Addr(), port), u), from}
}

// controlURLs are the readings of a control URL, best guess first, at most
// three, all on the device. There is none of an empty one, or of one that is
// not plain http.
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

// onDevice re-points an absolute URL to the device, whatever host it names,
// with the port that it names, then with the description's.
func rewriteToDevice(u *url.URL, bases []endpoint, add func(endpoint, *url.URL)) {
	from := bases[len(bases)-1]
	if port, err := portOf(u); err == nil {
		add(endpoint{addr: netip.AddrPortFrom(from.addr.Addr(), port)}, u)
	}
	add(from, u)
}

// reference is a path, with a query perhaps, below a directory. Colons in its
// first segment are part of it.
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

// relocate is a LOCATION as it may be used: plain http at the address of the
// responder, or of the gateway where it names that, with the path and port
// kept. The responder must be the gateway or on a network of ours, and
// loopback only where the gateway is. Its error wraps backends.ErrInvalid.
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
		return "", fmt.Errorf("%w: LOCATION %q is no URL", backends.ErrInvalid, location)
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
	// A gateway may answer from another address than the one that it serves at.
	if hostAddr, err := netip.ParseAddr(u.Hostname()); err == nil && hostAddr.Unmap() == gateway.WithZone("") {
		host = gateway
	}
	return newEndpoint(netip.AddrPortFrom(host, port), u).url.String(), nil
}

func checkResponder(responder, gateway netip.Addr, onLink func(netip.Addr) bool) error {
	switch {
	case !responder.IsValid() || responder.IsUnspecified() || responder.IsMulticast():
		return fmt.Errorf("%w: an answer from %v", backends.ErrInvalid, responder)
	case responder == gateway:
		return nil
	case responder.IsLoopback() && !gateway.IsLoopback():
		return fmt.Errorf("%w: an answer from this host, %v", backends.ErrInvalid, responder)
	case !onLink(responder):
		return fmt.Errorf("%w: an answer from %v, which is on no network of ours", backends.ErrInvalid, responder)
	}
	return nil
}

// withoutZone drops the zone from the host of a URL: it is the device's own
// index, and often not escaped as a URL has it.
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
