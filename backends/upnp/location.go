package upnp

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/natforward/goforward/backends"
)

// relocate is a LOCATION as it may be used: plain http at the address of the
// responder, or of the gateway where it names that, with the path and port
// kept. The responder must be the gateway or on a network of ours, and
// loopback only where the gateway is. Its error wraps backends.ErrInvalid.
func relocate(location string, from netip.AddrPort, gateway netip.Addr, onLink func(netip.Addr) bool) (string, error) {
	responder, gateway := from.Addr().Unmap(), gateway.Unmap()
	if err := checkResponder(responder, gateway, onLink); err != nil {
		return "", err
	}
	location = withoutZone(strings.TrimSpace(location))
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
	if named, err := netip.ParseAddr(u.Hostname()); err == nil && named.Unmap() == gateway.WithZone("") {
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
func withoutZone(location string) string {
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
