package upnp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/natforward/goforward/internal/lenient"
)

// The maximum sizes of response bodies.
const (
	maxDescription = 256 << 10
	maxResponse    = 128 << 10
	maxListing     = 512 << 10
)

const userAgent = "goforward UPnP/1.1"

// request is an HTTP request, a POST for an action or else a GET, and the limits
// for its response.
type request struct {
	service, action string
	body            []byte
	limit           int    // maximum size of the response body
	root            string // name of the element that ends the response
}

// encode returns the request. Some devices require this order of the headers, a
// SOAPACTION header that is not the last one, or the letter case of the standard.
// The legacy form is HTTP/1.0 with only the headers that every device requires.
func (r request) encode(target ipURL, legacy bool) []byte {
	method, headers := "GET", ""
	version, agent, soapAction, end := "1.1", "User-Agent: "+userAgent+"\r\n", "SOAPACTION", "Connection: close\r\n"
	if legacy {
		version, agent, soapAction, end = "1.0", "", "SOAPAction", ""
	}
	if r.action != "" {
		method, headers = "POST", fmt.Sprintf("Content-Type: text/xml; charset=\"utf-8\"\r\n%s: \"%s#%s\"\r\nContent-Length: %d\r\n",
			soapAction, r.service, r.action, len(r.body))
	}
	return fmt.Appendf(nil, "%s %s HTTP/%s\r\nHost: %s\r\n%s%s%s\r\n%s",
		method, target.url.RequestURI(), version, target.hostHeader(), agent, headers, end, r.body)
}

// notUnderstood contains the statuses with which devices reject headers or HTTP
// versions that they do not support.
var notUnderstood = []int{statusBadRequest, statusMethodNotAllowed, statusNotImplemented}

// exchange sends the request and passes the response to read. If read returns an
// *HTTPError with one of these statuses, exchange sends the request again in its
// legacy form: the device has not performed the action.
func (c ClientConfig) exchange(ctx context.Context, target ipURL, r request, read func(lenient.Response) error) (err error) {
	for _, legacy := range []bool{false, true} {
		var resp lenient.Response
		resp, err = c.dialer().Exchange(ctx, target.addr, lenient.Request{Data: r.encode(target, legacy), Limit: r.limit, Root: r.root})
		c.Logger.DebugContext(ctx, "upnp: request", "op", cmp.Or(r.action, "description"), "url", target.url.String(), "status", resp.Status, "err", err)
		if err != nil {
			return err
		}
		err = read(resp)
		if status, ok := errors.AsType[*HTTPError](err); !ok || !slices.Contains(notUnderstood, status.Status) {
			return err
		}
	}
	return err
}

func (c ClientConfig) dialer() lenient.Dialer {
	return lenient.Dialer{Interface: c.Interface, Source: c.Source, Timeout: c.Timeout}
}
