package upnp

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lenient"
	"github.com/natforward/goforward/internal/netbind"
)

// maxSID is the maximum length of a subscription identifier. The standard form, uuid:…, has 41
// bytes.
const maxSID = 128

// Subscribe subscribes to the events of the service (UPnP Device Architecture 1.1, section
// 4.1.2), and returns the identifier of the subscription, which is printable ASCII without
// spaces. The device then connects to callback and sends a NOTIFY request, usually a short time
// after its response and possibly before it. Most devices do so once, so the caller must listen
// before the call. The timeout of the subscription is sent in seconds, rounded up. It is at least
// one second; the device may choose another one. End the subscription by Unsubscribe.
//
// The callback is a plain http URL whose host is an IP address of this host. Subscribe never
// makes a device send requests to another host (CVE-2020-12695). The error wraps
// backends.ErrInvalid for any other callback, and backends.ErrUnsupported if the service has no
// events. If the device refuses the subscription, it is an *[HTTPError].
func (c *Client) Subscribe(ctx context.Context, callback string, timeout time.Duration) (sid string, err error) {
	to, err := parseCallback(callback)
	if err == nil && timeout <= 0 {
		err = fmt.Errorf("%w: timeout %v", backends.ErrInvalid, timeout)
	}
	if err == nil {
		seconds := (timeout-1)/time.Second + 1
		sid, err = c.exchangeEvent(ctx, "SUBSCRIBE", fmt.Sprintf("CALLBACK: <%s>\r\nNT: upnp:event\r\nTIMEOUT: Second-%d\r\n", to, seconds))
	}
	if err == nil && !validSID(sid) {
		err = malformed("subscription identifier %.32q", sid)
	}
	if err != nil {
		return "", fmt.Errorf("upnp: SUBSCRIBE: %w", err)
	}
	return sid, nil
}

// Unsubscribe ends a subscription (UPnP Device Architecture 1.1, section 4.1.4). sid is the
// identifier that Subscribe returned. The error wraps backends.ErrInvalid if it is not one.
func (c *Client) Unsubscribe(ctx context.Context, sid string) error {
	err := fmt.Errorf("%w: subscription identifier %.32q", backends.ErrInvalid, sid)
	if validSID(sid) {
		_, err = c.exchangeEvent(ctx, "UNSUBSCRIBE", "SID: "+sid+"\r\n")
	}
	if err != nil {
		return fmt.Errorf("upnp: UNSUBSCRIBE: %w", err)
	}
	return nil
}

// exchangeEvent sends a request to the event URL and returns the SID header of its response. The
// body of the response has no meaning and is not read. There is no second attempt: a device that
// does not understand the first one has no events.
func (c *Client) exchangeEvent(ctx context.Context, method, headers string) (sid string, err error) {
	to := c.events
	if to.url == nil {
		return "", fmt.Errorf("%w: the service has no events", backends.ErrUnsupported)
	}
	leave, err := enterQueue(ctx, &requestQueues, to.addr)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errQueued, err)
	}
	defer leave()
	data := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\n%sConnection: close\r\n\r\n",
		method, to.url.RequestURI(), to.hostHeader(), userAgent, headers)
	resp, err := c.config.dialer().Exchange(ctx, to.addr, lenient.Request{Data: data, Header: "SID"})
	c.config.Logger.DebugContext(ctx, "upnp: request", "op", method, "url", to.url.String(), "status", resp.Status, "err", err)
	switch {
	case err != nil:
		return "", err
	case resp.Status/100 != 2:
		return "", &HTTPError{Status: resp.Status}
	case resp.Truncated:
		return "", malformed("HTTP header without an end")
	}
	return resp.Header, nil
}

// parseCallback returns the callback as it is sent: without a zone, which is local to this host.
func parseCallback(raw string) (string, error) {
	e, err := parseIPURL(raw)
	if err != nil {
		return "", fmt.Errorf("callback: %w", err)
	}
	switch {
	case strings.ContainsAny(e.url.RequestURI(), "<>"):
		return "", fmt.Errorf("callback: %w: angle brackets", backends.ErrInvalid)
	case !netbind.HasAddr(e.addr.Addr()):
		return "", fmt.Errorf("callback: %w: %v is %w", backends.ErrInvalid, e.addr.Addr(), netbind.ErrNotHere)
	}
	return "http://" + e.withoutZone() + e.url.RequestURI(), nil
}

// validSID reports whether a subscription identifier is valid in an HTTP header.
func validSID(sid string) bool {
	return 0 < len(sid) && len(sid) <= maxSID && strings.IndexFunc(sid, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}
