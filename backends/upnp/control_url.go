package upnp

import (
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
)

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
		onDevice(u, bases, add)
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
func onDevice(u *url.URL, bases []endpoint, add func(endpoint, *url.URL)) {
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
