package upnp

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Name is the name of the protocol, which Backend.String returns.
const Name = "upnp"

// DefaultTimeout is the default of ClientConfig.Timeout.
const DefaultTimeout = 4 * time.Second

// ClientConfig contains the parameters for reaching a device.
type ClientConfig struct {
	// Interface is the interface from which to connect, on systems that let a
	// program choose it. If it is empty, the kernel chooses.
	Interface string
	// Source is the local address from which to connect. Devices treat it as the address of the
	// requesting host. If it is the zero Addr, the kernel chooses.
	Source netip.Addr
	// Timeout bounds connecting to the device. The response may take twice as long, because
	// small devices are slow when they are busy. Zero means DefaultTimeout.
	Timeout time.Duration
	// Logger receives a debug message for each exchange. If it is nil, nothing is logged.
	Logger *slog.Logger
}

// check sets the defaults. It returns an error that wraps backends.ErrInvalid if
// the timeout is negative, or if Source is not of the device's address family.
func (c *ClientConfig) check(device netip.Addr) error {
	c.Source = c.Source.Unmap()
	switch {
	case c.Timeout < 0:
		return fmt.Errorf("%w: negative timeout %v", backends.ErrInvalid, c.Timeout)
	case c.Source.IsValid() && c.Source.Is4() != device.Is4():
		return fmt.Errorf("%w: source %v and device %v are of different families", backends.ErrInvalid, c.Source, device)
	}
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return nil
}

// Client performs the actions of one service of a device. Each action uses a connection of its
// own, so there is nothing to close. The methods may be called concurrently. All Clients of a
// process together send one request at a time to an address and port.
//
// If the device refuses an action, the error is a *[Fault]. If the response has an HTTP error
// status without a fault, it is an *[HTTPError]. The error wraps backends.ErrMalformed if the
// response cannot be read, backends.ErrNoReply if there is none, and backends.ErrInvalid if the
// arguments are invalid. If ctx ends during the call, the error wraps the cause.
type Client struct {
	service Service
	config  ClientConfig
	urls    []ipURL      // possible URLs of the service, the most likely first
	events  ipURL        // the URL for subscriptions, or the zero value
	current atomic.Int32 // index of the URL that responded last

	lastExternal atomic.Pointer[externalReply]
	lastReply    atomic.Pointer[time.Time] // when the last response to any action was received
}

// externalReply is a response to GetExternalIPAddress.
type externalReply struct {
	addr     netip.Addr
	received time.Time
}

// NewClient checks the service and the config. It does no I/O. Its error wraps
// backends.ErrInvalid.
func NewClient(s Service, config ClientConfig) (*Client, error) {
	if !validType(s.Type) {
		return nil, fmt.Errorf("upnp: %w: invalid service type %q", backends.ErrInvalid, s.Type)
	}
	c := &Client{service: s}
	for _, raw := range append([]string{s.ControlURL}, s.alternates[:]...) {
		if raw == "" && len(c.urls) > 0 {
			continue
		}
		e, err := parseIPURL(raw)
		if err != nil {
			return nil, fmt.Errorf("upnp: control URL: %w", err)
		}
		c.urls = append(c.urls, e)
	}
	if s.EventURL != "" {
		var err error
		if c.events, err = parseIPURL(s.EventURL); err != nil {
			return nil, fmt.Errorf("upnp: event URL: %w", err)
		}
		if device := c.urls[0].addr.Addr(); c.events.addr.Addr() != device {
			return nil, fmt.Errorf("upnp: event URL: %w: its host %v is not the device, %v", backends.ErrInvalid, c.events.addr.Addr(), device)
		}
	}
	if err := config.check(c.urls[0].addr.Addr()); err != nil {
		return nil, fmt.Errorf("upnp: %w", err)
	}
	c.config = config
	return c, nil
}

// Service returns the service. Its ControlURL is the URL that responded last.
func (c *Client) Service() Service {
	s := c.service
	s.ControlURL = c.urls[c.current.Load()].url.String()
	return s
}

// addr returns the address and port of the URL that responded last.
func (c *Client) addr() netip.AddrPort { return c.urls[c.current.Load()].addr }

// The request queues of the process. Small devices serve one request at a time,
// so requestQueues has one queue for each address and port to which actions are
// sent. tableQueues has one queue for the table of each device.
var (
	requestQueues ctxsync.Queues[netip.AddrPort]
	tableQueues   ctxsync.Queues[netip.Addr]
)

// enterQueue enters the queue for key and waits until it is at the head. It
// returns the function that leaves the queue.
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

// lockTable waits until no other call in this process is changing the device's
// table. Without the lock, two calls could both find that a port has no entry,
// and the second one would overwrite the entry of the first.
func (g *gateway) lockTable(ctx context.Context) (unlock func(), err error) {
	unlock, err = enterQueue(ctx, &tableQueues, g.Device.Host)
	if err != nil {
		return nil, fmt.Errorf("upnp: %w", err)
	}
	return unlock, nil
}
