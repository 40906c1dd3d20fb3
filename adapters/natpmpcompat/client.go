package natpmp

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
)

// Client asks one gateway, on port 5351. Make one with NewClient or its kin. Its
// methods may be called by several goroutines at once. It holds nothing open
// between calls.
type Client struct {
	config  natpmp.Config
	timeout time.Duration
	err     error // of the arguments of the constructor, which returns none
}

// NewClient returns a client for a gateway, which gives up on a silent one after
// nine requests in 127.75 seconds (RFC 6886, section 3.1). It does no I/O. An
// address that is none makes all calls fail with backends.ErrInvalid.
func NewClient(gateway net.IP) *Client {
	return NewClientWithLocalAndTimeout(gateway, nil, 0)
}

// NewClientWithLocal is NewClient with the local address to ask from, which is
// the one that gets the mappings. Nil: the kernel's choice.
func NewClientWithLocal(gateway net.IP, local net.IP) *Client {
	return NewClientWithLocalAndTimeout(gateway, local, 0)
}

// NewClientWithTimeout is NewClient with a bound on each call: requests go out
// until it is over, at first after 250 ms, 500 ms and so on. Zero is NewClient's; with
// less, nothing is sent.
func NewClientWithTimeout(gateway net.IP, timeout time.Duration) *Client {
	return NewClientWithLocalAndTimeout(gateway, nil, timeout)
}

// NewClientWithLocalAndTimeout is both.
func NewClientWithLocalAndTimeout(gateway net.IP, local net.IP, timeout time.Duration) *Client {
	c := &Client{timeout: timeout}
	gw, ok := netip.AddrFromSlice(gateway)
	if !ok {
		c.err = fmt.Errorf("natpmp: %w: gateway %v is no address", backends.ErrInvalid, gateway)
	}
	c.config.Gateway = netip.AddrPortFrom(gw.Unmap(), natpmp.Port)
	if len(local) > 0 {
		source, _ := netip.AddrFromSlice(local)
		if c.config.Source = source.Unmap(); !c.config.Source.Is4() {
			c.err = fmt.Errorf("natpmp: %w: local address %v is not of IPv4", backends.ErrInvalid, local)
		}
	}
	if timeout != 0 { // it ends the requests, and nothing else does
		c.config.Transmissions = math.MaxInt
		c.config.LongestWait = natpmp.DefaultFirstWait << (natpmp.DefaultTransmissions - 1)
	}
	return c
}

// do makes one call. Where the timeout is over, its error wraps
// backends.ErrNoReply.
func (c *Client) do(call func(context.Context, *natpmp.Client) error) error {
	if c.err != nil {
		return c.err
	}
	client, err := natpmp.NewClient(c.config)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	ctx := context.Background()
	if c.timeout != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("%w within %v", backends.ErrNoReply, c.timeout))
		defer cancel()
	}
	return call(ctx, client)
}

// GetExternalAddressResult is the answer to GetExternalAddress.
type GetExternalAddressResult struct {
	// SecondsSinceStartOfEpoc is the time since the gateway's table was last empty.
	SecondsSinceStartOfEpoc uint32
	ExternalIPAddress       [4]byte
}

// GetExternalAddress asks for the gateway's external address.
func (c *Client) GetExternalAddress() (*GetExternalAddressResult, error) {
	var r natpmp.ExternalAddrResponse
	err := c.do(func(ctx context.Context, client *natpmp.Client) (err error) {
		r, err = client.ExternalAddr(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &GetExternalAddressResult{seconds(r.Epoch), r.Addr.As4()}, nil
}

// seconds is the wire's unit, which the duration was read from.
func seconds(d time.Duration) uint32 {
	return uint32(d / time.Second) //nolint:gosec // it was a uint32
}
