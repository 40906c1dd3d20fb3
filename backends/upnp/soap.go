package upnp

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/huin/goupnp/soap"
)

// maxResponseElements is the maximum number of elements in a response.
// Responses of the standard have at most 13.
const maxResponseElements = 256

// noOutput contains the actions without output arguments. An empty response to
// one of them is a success.
var noOutput = map[string]bool{"AddPortMapping": true, "DeletePortMapping": true, "UpdatePinhole": true, "DeletePinhole": true}

// perform performs an action and returns the element that contains the output
// arguments. in is nil or a pointer to a struct of strings, whose fields have the
// names and the order of the arguments. invalid is the error of the arguments.
func (c *Client) perform(ctx context.Context, action string, in any, invalid error) (*element, error) {
	if invalid != nil {
		return nil, fmt.Errorf("upnp: %s: %w", action, invalid)
	}
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

// performAt performs an action at a URL. It waits until the earlier requests of
// this process to that address and port have completed. Package goupnp encodes
// the request.
func (c *Client) performAt(ctx context.Context, target ipURL, action string, in any) (*element, error) {
	leave, err := enterQueue(ctx, &requestQueues, target.addr)
	if err != nil {
		return nil, fmt.Errorf("upnp: %s: %w", action, err)
	}
	defer leave()
	x := &soapExchange{config: c.config, target: target, service: c.service.Type, action: action}
	client := soap.SOAPClient{EndpointURL: *target.url, HTTPClient: http.Client{Transport: x}}
	if err := client.PerformActionCtx(ctx, x.service, action, in, nil); x.out == nil && x.err == nil {
		x.err = err
	}
	var fault *Fault
	if x.err != nil && !errors.As(x.err, &fault) {
		x.err = fmt.Errorf("upnp: %s: %w", action, x.err)
	}
	return x.out, x.err
}

// call performs an action and returns what parse reads from its output arguments.
func call[T any](ctx context.Context, c *Client, action string, in any, invalid error, parse func(out *element) (T, error)) (T, error) {
	var result T
	out, err := c.perform(ctx, action, in, invalid)
	if err != nil {
		return result, err
	}
	if result, err = parse(out); err != nil {
		err = fmt.Errorf("upnp: %s: %w", action, err)
	}
	return result, err
}

// soapExchange performs one action. It is an http.RoundTripper that takes the
// request from goupnp, writes it in a form that strict devices accept, and keeps
// the response.
type soapExchange struct {
	config          ClientConfig
	target          ipURL
	service, action string

	out *element
	err error
}

var errKept = errors.New("the response was kept")

// RoundTrip sends the body of r as the body of the action. It always returns an
// error, so that goupnp does not read the response.
func (x *soapExchange) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil {
		return nil, err
	}
	limit := maxResponse
	if x.action == listAction {
		limit = maxListing
	}
	// Some devices do not accept newlines between elements. The arguments are
	// ASCII.
	body = append([]byte(`<?xml version="1.0"?>`), bytes.TrimPrefix(body, []byte(xml.Header))...)
	x.err = x.config.exchange(r.Context(), x.target, request{
		service: x.service, action: x.action, body: body, limit: limit, root: "Envelope",
	}, func(resp response) (err error) {
		x.out, err = readOutput(x.action, resp)
		return err
	})
	return nil, errKept
}

// readOutput returns the element that contains the output arguments of an action.
// The error is a *Fault, an *HTTPError, or wraps backends.ErrMalformed. A
// success or a fault is recognised independent of the HTTP status.
func readOutput(action string, resp response) (*element, error) {
	limit := maxResponseElements
	if action == listAction {
		limit += maxListElements // some devices do not escape the listing
	}
	document, err := parseXML(resp.body, limit)
	if err != nil {
		return nil, err
	}
	if out := document.find(action + "Response"); out != nil && out.closed {
		return out, nil
	}
	for _, name := range []string{"Fault", "UPnPError"} { // with or without the elements around it
		if e := document.find(name); e != nil {
			return nil, newFault(action, resp.status, e)
		}
	}
	switch {
	case noOutput[action] && resp.succeeded() && isEmpty(resp.body, document):
		return document, nil
	case resp.status/100 != 2:
		return nil, &HTTPError{Status: resp.status}
	}
	return nil, malformed("%d bytes that are not a response", len(resp.body))
}

// isEmpty reports whether a response has no body, or only an empty envelope.
func isEmpty(body []byte, document *element) bool {
	if len(bytes.Trim(body, "\x00 \t\r\n")) == 0 {
		return true
	}
	envelope := document.child("Envelope")
	if envelope == nil || !envelope.closed {
		return false
	}
	b := envelope.child("Body")
	return b != nil && len(b.children) == 0 && b.text == ""
}

// newFault returns the fault that the element contains.
func newFault(action string, status int, e *element) *Fault {
	f := &Fault{Action: action, Status: status}
	if code := e.find("errorCode"); code != nil {
		var n int32
		if _, err := fmt.Sscanf(code.text, "%d", &n); err == nil { // a text may follow
			f.Code = FaultCode(n)
		}
	}
	for _, name := range []string{"errorDescription", "faultstring"} {
		if text := e.find(name); text != nil && f.Description == "" {
			f.Description = printable(text.text)
		}
	}
	return f
}
