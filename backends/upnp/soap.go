package upnp

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/natforward/goforward/internal/lenient"
)

// maxResponseElements is the maximum number of elements in a response.
// Responses of the standard have at most 13.
const maxResponseElements = 256

// outputless contains the actions without output arguments. An empty response to
// one of them is a success.
var outputless = map[string]bool{"AddPortMapping": true, "DeletePortMapping": true, "UpdatePinhole": true, "DeletePinhole": true}

// call performs an action and returns what parse reads from its output arguments.
// in is nil or a struct of strings, whose fields have the names and the order of
// the input arguments. invalid is their error.
func call[T any](ctx context.Context, c *Client, action string, in any, invalid error, parse func(out *lenient.Element) (T, error)) (T, error) {
	var zero, result T
	err := invalid
	if err == nil {
		var out *lenient.Element
		if out, err = c.perform(ctx, action, in); err == nil {
			result, err = parse(out)
		}
	}
	if err == nil {
		return result, nil
	}
	if _, ok := errors.AsType[*Fault](err); ok {
		return zero, err
	}
	return zero, fmt.Errorf("upnp: %s: %w", action, err)
}

// noOutput is the parse of actions without output arguments.
func noOutput(*lenient.Element) (struct{}, error) { return struct{}{}, nil }

// perform performs an action and returns the element that contains the output arguments.
func (c *Client) perform(ctx context.Context, action string, in any) (*lenient.Element, error) {
	first := int(c.current.Load())
	out, err := c.performAt(ctx, c.urls[first], action, in)
	for i := range c.urls {
		// If the description is ambiguous about the control URL and nothing is
		// at the first one, try the others.
		if i == first || !Moved(err) {
			continue
		}
		if out, otherErr := c.performAt(ctx, c.urls[i], action, in); !Moved(otherErr) {
			c.current.Store(int32(i))
			return out, otherErr
		}
	}
	return out, err
}

// errQueued means that a request was not sent, because earlier ones took too long.
var errQueued = errors.New("waiting for earlier requests")

// performAt performs an action at a URL. It waits until the earlier requests of
// this process to that address and port have completed, unless the caller has done so.
func (c *Client) performAt(ctx context.Context, target ipURL, action string, in any) (out *lenient.Element, err error) {
	if ctx.Value(queuedKey{}) != target.addr {
		leave, err := enterQueue(ctx, &requestQueues, target.addr)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errQueued, err)
		}
		defer leave()
	}
	r := request{service: c.service.Type, action: action, body: encodeAction(c.service.Type, action, in), limit: maxResponse, root: "Envelope"}
	if action == listAction {
		r.limit = maxListing
	}
	err = c.config.exchange(ctx, target, r, func(resp lenient.Response) (err error) {
		now := time.Now()
		c.lastReply.Store(&now)
		out, err = readOutput(action, resp)
		return err
	})
	return out, err
}

// encodeAction returns the body of a request. in is nil or a struct of strings. There are no
// newlines between elements, because some devices do not accept them.
func encodeAction(serviceType, action string, in any) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" `+
		`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:%s xmlns:u="%s">`, action, serviceType)
	if in != nil {
		for field, value := range reflect.ValueOf(in).Fields() {
			fmt.Fprintf(&b, "<%s>%s</%[1]s>", field.Name, escaper.Replace(value.String()))
		}
	}
	fmt.Fprintf(&b, "</u:%s></s:Body></s:Envelope>", action)
	return b.Bytes()
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// readOutput returns the element that contains the output arguments of an action.
// The error is a *Fault, an *HTTPError, or wraps backends.ErrMalformed. A
// success or a fault is recognised independent of the HTTP status.
func readOutput(action string, resp lenient.Response) (*lenient.Element, error) {
	limit := maxResponseElements
	if action == listAction {
		limit += maxListElements // some devices do not escape the listing
	}
	document, err := lenient.Parse(resp.Body, limit)
	if err != nil {
		return nil, err
	}
	if out := document.All(action + "Response"); len(out) > 0 && out[0].Closed {
		return out[0], nil
	}
	if len(document.All("Fault"))+len(document.All("UPnPError")) > 0 {
		return nil, newFault(action, resp.Status, document)
	}
	switch {
	case outputless[action] && !resp.Truncated && resp.Status/100 == 2 && isEmpty(resp.Body, document):
		return document, nil
	case resp.Status/100 != 2:
		return nil, &HTTPError{Status: resp.Status}
	}
	return nil, malformed("%d bytes that are not a response", len(resp.Body))
}

// isEmpty reports whether a response has no body, or only an empty envelope.
func isEmpty(body []byte, document *lenient.Element) bool {
	if len(bytes.Trim(body, "\x00 \t\r\n")) == 0 {
		return true
	}
	bodies := document.At("Envelope", "Body")
	return len(bodies) == 1 && document.Children[0].Closed && len(bodies[0].Children) == 0 && bodies[0].Text == ""
}

// newFault returns the fault in a document. A text may follow its code.
func newFault(action string, status int, document *lenient.Element) *Fault {
	f := &Fault{Action: action, Status: status}
	for _, e := range document.All("errorCode") {
		var code int32
		if _, err := fmt.Sscanf(e.Text, "%d", &code); err == nil {
			f.Code = cmp.Or(f.Code, FaultCode(code))
		}
	}
	for _, e := range append(document.All("errorDescription"), document.All("faultstring")...) {
		f.Description = cmp.Or(f.Description, printable(e.Text))
	}
	return f
}
