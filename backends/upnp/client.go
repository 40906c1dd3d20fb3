package upnp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/huin/goupnp/soap"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Name is what the backend is called.
const Name = "upnp"

// DefaultTimeout bounds connecting to a device and, twice as long, its answer.
const DefaultTimeout = 4 * time.Second

// ClientConfig says how to reach a device.
type ClientConfig struct {
	// Interface is the interface to leave by, where the OS lets us choose. Empty:
	// the kernel's choice.
	Interface string
	// Source is the local address to connect from, which devices take for the
	// one that asks. The zero Addr: the kernel's choice.
	Source netip.Addr
	// Timeout bounds connecting to the device and, twice as long, its answer: small
	// devices are slow when they are busy. Zero: DefaultTimeout.
	Timeout time.Duration
	// Logger is told of each exchange, at debug level. Nil: nobody.
	Logger *slog.Logger
}

// check fills in what was left zero and says whether the device can be
// reached so. Its error wraps backends.ErrInvalid.
func (c *ClientConfig) check(device netip.Addr) error {
	c.Source = c.Source.Unmap()
	switch {
	case c.Timeout < 0:
		return fmt.Errorf("%w: negative timeout %v", backends.ErrInvalid, c.Timeout)
	case c.Source.IsValid() && c.Source.Is4() != device.Is4():
		return fmt.Errorf("%w: the device is at %v, which %v cannot reach", backends.ErrInvalid, device, c.Source)
	}
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return nil
}

// Client performs the actions of one service of a device, each over a
// connection of its own, so there is nothing to close. Its methods may be
// called by several goroutines at once. All Clients of the process together send one
// request at a time to an address and port.
//
// A refusal by the device is a *[Fault]; an HTTP status without one, an
// *[HTTPError]; an answer that cannot be read wraps backends.ErrMalformed; no
// answer, backends.ErrNoReply; arguments that make no sense,
// backends.ErrInvalid. Where the caller's context ended the call, the error
// wraps its cause.
type Client struct {
	service   Service
	config    ClientConfig
	endpoints []endpoint   // where the service may be, best guess first
	current   atomic.Int32 // the one of endpoints that answered
}

// NewClient checks the service and the config. It does no I/O. Its error wraps
// backends.ErrInvalid.
func NewClient(s Service, config ClientConfig) (*Client, error) {
	if !validType(s.Type) {
		return nil, fmt.Errorf("upnp: %w: no service type %q", backends.ErrInvalid, s.Type)
	}
	c := &Client{service: s}
	for _, raw := range append([]string{s.ControlURL}, s.alternates[:]...) {
		if raw == "" && len(c.endpoints) > 0 {
			continue
		}
		e, err := parseEndpoint(raw)
		if err != nil {
			return nil, fmt.Errorf("upnp: control URL: %w", err)
		}
		c.endpoints = append(c.endpoints, e)
	}
	if err := config.check(c.endpoints[0].addr.Addr()); err != nil {
		return nil, fmt.Errorf("upnp: %w", err)
	}
	c.config = config
	return c, nil
}

// Service returns the service, with the control URL that answered last.
func (c *Client) Service() Service {
	s := c.service
	s.ControlURL = c.endpoints[c.current.Load()].url.String()
	return s
}

// perform performs an action. in and out are pointers to structs of strings,
// named as the arguments are and in their order, or nil.
func (c *Client) perform(ctx context.Context, action string, in, out any) error {
	first := int(c.current.Load())
	err := c.performAt(ctx, c.endpoints[first], action, in, out)
	for i := range c.endpoints {
		// Where the description is ambiguous about the URL, what did not reach the
		// service at one of its readings is tried at the next.
		if i == first || !Moved(err) {
			continue
		}
		if otherErr := c.performAt(ctx, c.endpoints[i], action, in, out); !Moved(otherErr) {
			c.current.Store(int32(i))
			return otherErr
		}
	}
	return err
}

// performAt performs an action at an endpoint, in its turn.
func (c *Client) performAt(ctx context.Context, target endpoint, action string, in, out any) error {
	leave, err := enterQueue(ctx, &requestQueues, target.addr)
	if err != nil {
		return fmt.Errorf("upnp: %s: %w", action, err)
	}
	defer leave()
	transport := &soapTransport{
		soapCall: soapCall{service: c.service.Type, action: action, noOutput: out == nil},
		config:   c.config, endpoint: target,
	}
	client := soap.SOAPClient{EndpointURL: *target.url, HTTPClient: http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	err = client.PerformActionCtx(ctx, c.service.Type, action, in, out)
	var fault *soap.SOAPFaultError
	switch {
	case transport.err != nil: // goupnp's error around it has its text only
		return fmt.Errorf("upnp: %s: %w", action, transport.err)
	case errors.As(err, &fault):
		detail := fault.Detail.UPnPError
		return &Fault{
			Action: action, Code: FaultCode(detail.Errorcode), Status: transport.status,
			Description: printable(detail.ErrorDescription),
		}
	case err != nil:
		return fmt.Errorf("upnp: %s: %w: %w", action, backends.ErrMalformed, err)
	}
	return nil
}

// The queues of the process. hosts has those for the addresses and ports that actions
// are sent to: small devices serve one request at a time. tables has those for the
// tables of devices.
var (
	requestQueues ctxsync.Queues[netip.AddrPort]
	tableQueues   ctxsync.Queues[netip.Addr]
)

// takeTurn waits for a turn in a queue, and returns what ends it.
func enterQueue[K comparable](ctx context.Context, q *ctxsync.Queues[K], key K) (leave func(), err error) {
	ready, leaveQueue := q.Enter(ctx, key)
	select {
	case <-ready:
		return leaveQueue, nil
	case <-ctx.Done():
		leaveQueue()
		return nil, context.Cause(ctx)
	}
}

// takeTable waits until no other call in the process looks at the device's table in
// order to change it: two calls that both look and then both add would overwrite each
// other's entries.
func (g *gateway) lockTable(ctx context.Context) (unlock func(), err error) {
	unlock, err = enterQueue(ctx, &tableQueues, g.Device.Host)
	if err != nil {
		return nil, fmt.Errorf("upnp: %w", err)
	}
	return unlock, nil
}
