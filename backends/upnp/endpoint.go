package upnp

import (
	"fmt"
	"net/netip"
	"net/url"
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
	path.RawQuery = plainQuery(path.RawQuery)
	return endpoint{url: &path, addr: addr}
}

// plainQuery escapes what package url lets pass and a request line does not.
func plainQuery(query string) string {
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
func (e endpoint) host() string {
	return netip.AddrPortFrom(e.addr.Addr().WithZone(""), e.addr.Port()).String()
}

// validType reports whether a service type may stand in a header and in an
// XML attribute as it is.
func validType(s string) bool {
	valid := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune(":._-", r)
	}
	return s != "" && len(s) <= 128 && strings.IndexFunc(s, func(r rune) bool { return !valid(r) }) < 0
}
