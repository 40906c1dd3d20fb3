package gatewaytest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// maxSubscriptions is the maximum number of subscriptions. Further ones get status 503.
	maxSubscriptions = 64
	// eventDelay is the time from a subscription to its first event, in real time.
	eventDelay = 50 * time.Millisecond
	// eventTimeout bounds the connection to a subscriber.
	eventTimeout = 5 * time.Second
)

// eventPath returns the path for subscriptions to the events of the service.
func (v *igdService) eventPath() string { return "/evt/" + v.name }

// handleEvents executes a request that begins, renews or ends a subscription (UPnP Device
// Architecture 1.1, section 4.1). The gateway sends only the initial event. Subscriptions do
// not expire.
func (s *upnpServer) handleEvents(r *httpRequest) (httpResponse, error) {
	v := s.eventServiceAt(r.target)
	switch {
	case s.config.Events.Status != 0:
		return httpResponse{}, statusError(s.config.Events.Status)
	case v == nil:
		return httpResponse{}, statusError(404)
	}
	sid, renews := r.header("SID")
	if r.method == "SUBSCRIBE" && !renews {
		return s.subscribe(v, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.subscriptions[sid]; !ok {
		return httpResponse{}, statusError(412)
	}
	if r.method == "UNSUBSCRIBE" {
		delete(s.subscriptions, sid)
		return httpResponse{status: 200}, nil
	}
	return subscribed(sid), nil
}

// subscribed returns the response to a subscription that is accepted.
func subscribed(sid string) httpResponse {
	return httpResponse{status: 200, headers: []httpHeader{{"SID", sid}, {"TIMEOUT", "Second-1800"}}}
}

// subscribe begins a subscription.
func (s *upnpServer) subscribe(v *igdService, r *httpRequest) (httpResponse, error) {
	to, path, ok := parseCallback(r)
	if nt, _ := r.header("NT"); !ok || nt != "upnp:event" {
		return httpResponse{}, statusError(412)
	}
	sid := randomUDN()
	s.mu.Lock()
	full := len(s.subscriptions) >= maxSubscriptions
	if !full {
		s.subscriptions[sid] = struct{}{}
	}
	s.mu.Unlock()
	if full {
		return httpResponse{}, statusError(503)
	}
	if !s.config.Events.Silent {
		from := r.local
		s.g.spawn(func() {
			if s.g.sleep(eventDelay) {
				s.sendEvent(v, sid, from, to, path)
			}
		})
	}
	return subscribed(sid), nil
}

// parseCallback returns the first callback of a subscription. As in miniupnpd, it must be on the
// host that sends the request, so that the gateway sends nothing to other hosts (CVE-2020-12695).
func parseCallback(r *httpRequest) (to netip.AddrPort, path string, ok bool) {
	value, _ := r.header("CALLBACK")
	value, isURL := strings.CutPrefix(value, "<")
	value, _, ended := strings.Cut(value, ">")
	u, err := url.Parse(value)
	if !isURL || !ended || err != nil || u.Scheme != "http" {
		return to, "", false
	}
	host, err := netip.ParseAddr(u.Hostname())
	port, portErr := strconv.ParseUint(u.Port(), 10, 16)
	if host = host.Unmap(); err != nil || portErr != nil || port == 0 || host != r.source.Addr() {
		return to, "", false
	}
	return netip.AddrPortFrom(host, uint16(port)), u.RequestURI(), true
}

// eventServiceAt returns the service whose event URL has this path, or nil.
func (s *upnpServer) eventServiceAt(path string) *igdService {
	for _, d := range s.root.all() {
		for _, v := range d.services {
			if v.eventPath() == path {
				return v
			}
		}
	}
	return nil
}

// sendEvent sends the initial event of a subscription (UPnP Device Architecture 1.1, section
// 4.3.2) once, from the address at which the subscription arrived.
func (s *upnpServer) sendEvent(v *igdService, sid string, from netip.Addr, to netip.AddrPort, path string) {
	ctx, cancel := context.WithTimeout(context.Background(), eventTimeout)
	defer cancel()
	defer s.g.onClose(cancel)()
	to = netip.AddrPortFrom(to.Addr().WithZone(from.Zone()), to.Port())
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	body := `<e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0"><e:property>` + s.firstEvent(v) + `</e:property></e:propertyset>`
	request := fmt.Sprintf("NOTIFY %s HTTP/1.1\r\nHOST: %s\r\nCONTENT-TYPE: text/xml; charset=\"utf-8\"\r\nCONTENT-LENGTH: %d\r\n"+
		"NT: upnp:event\r\nNTS: upnp:propchange\r\nSID: %s\r\nSEQ: 0\r\nCONNECTION: close\r\n\r\n%s",
		path, netip.AddrPortFrom(to.Addr().WithZone(""), to.Port()), len(body), sid, body)
	if _, err := io.WriteString(conn, request); err == nil {
		_, _ = io.CopyN(io.Discard, conn, maxHeaderBytes)
	}
}

// firstEvent returns a variable of the service.
func (s *upnpServer) firstEvent(v *igdService) string {
	switch v.kind {
	case wanIP, wanPPP:
		return "<ExternalIPAddress>" + addrText(s.g.External()) + "</ExternalIPAddress>"
	case ipv6Firewall:
		return "<FirewallEnabled>1</FirewallEnabled>"
	}
	return ""
}

// addrText returns an address, or an empty text for the zero Addr.
func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
