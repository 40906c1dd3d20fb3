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

// Client sends requests to one gateway, on port 5351. Create it with NewClient or one of the
// other constructors. Several goroutines may call its methods at once. It has no open socket
// between calls.
type Client struct {
	config  natpmp.Config
	timeout time.Duration
	err     error // for invalid arguments of the constructor, which cannot return an error
}

// NewClient returns a client for a gateway. If the gateway does not reply, a call fails after
// nine requests in 127.75 seconds (RFC 6886, section 3.1). NewClient does no I/O. If the
// address is invalid, all calls fail with backends.ErrInvalid.
func NewClient(gateway net.IP) *Client {
	return NewClientWithLocalAndTimeout(gateway, nil, 0)
}

// NewClientWithLocal is NewClient with a local address. The client sends its requests from
// that address, and the gateway forwards to it. If local is nil, the kernel selects the
// address.
func NewClientWithLocal(gateway net.IP, local net.IP) *Client {
	return NewClientWithLocalAndTimeout(gateway, local, 0)
}

// NewClientWithTimeout is NewClient with a timeout for each call. The client repeats the
// request until the timeout, at first after 250 ms, then after another 500 ms and so on. A
// timeout of zero selects the limit of NewClient. If the timeout is negative, the client
// sends nothing.
func NewClientWithTimeout(gateway net.IP, timeout time.Duration) *Client {
	return NewClientWithLocalAndTimeout(gateway, nil, timeout)
}

// NewClientWithLocalAndTimeout is NewClient with a local address and a timeout, as in
// NewClientWithLocal and NewClientWithTimeout.
func NewClientWithLocalAndTimeout(gateway net.IP, local net.IP, timeout time.Duration) *Client {
	c := &Client{timeout: timeout}
	gw, ok := netip.AddrFromSlice(gateway)
	if !ok {
		c.err = fmt.Errorf("natpmp: %w: gateway %v is not an address", backends.ErrInvalid, gateway)
	}
	c.config.Gateway = netip.AddrPortFrom(gw.Unmap(), natpmp.Port)
	if len(local) > 0 {
		source, _ := netip.AddrFromSlice(local)
		if c.config.Source = source.Unmap(); !c.config.Source.Is4() {
			c.err = fmt.Errorf("natpmp: %w: local address %v is not an IPv4 address", backends.ErrInvalid, local)
		}
	}
	if timeout != 0 { // only the timeout ends the requests
		c.config.Transmissions = math.MaxInt
		c.config.LongestWait = natpmp.DefaultFirstWait << (natpmp.DefaultTransmissions - 1)
	}
	return c
}

// withClient calls a function with a new client and a context that ends after the timeout. The
// cause of that end wraps backends.ErrNoReply.
func (c *Client) withClient(call func(context.Context, *natpmp.Client) error) error {
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

// GetExternalAddressResult is the result of GetExternalAddress.
type GetExternalAddressResult struct {
	// SecondsSinceStartOfEpoc is the gateway's epoch: the time since it started or lost its
	// mappings.
	SecondsSinceStartOfEpoc uint32
	ExternalIPAddress       [4]byte
}

// GetExternalAddress requests the external address from the gateway.
func (c *Client) GetExternalAddress() (*GetExternalAddressResult, error) {
	var r natpmp.ExternalAddrResponse
	err := c.withClient(func(ctx context.Context, client *natpmp.Client) (err error) {
		r, err = client.ExternalAddr(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &GetExternalAddressResult{seconds(r.Epoch), r.Addr.As4()}, nil
}

// seconds converts a duration that was parsed from a response back to seconds.
func seconds(d time.Duration) uint32 {
	return uint32(d / time.Second) //nolint:gosec // the duration was parsed from a uint32
}

// RECOMMENDED_MAPPING_LIFETIME_SECONDS is the recommended lifetime for AddPortMapping: one
// hour.
const RECOMMENDED_MAPPING_LIFETIME_SECONDS = 3600 //nolint:staticcheck // go-nat-pmp has this name

// AddPortMappingResult is the result of AddPortMapping. It contains what the gateway granted,
// which may differ from the request.
type AddPortMappingResult struct {
	// SecondsSinceStartOfEpoc is the gateway's epoch: the time since it started or lost its
	// mappings.
	SecondsSinceStartOfEpoc      uint32
	InternalPort                 uint16
	MappedExternalPort           uint16
	PortMappingLifetimeInSeconds uint32
}

// AddPortMapping requests a mapping of an internal port of this host. The protocol is "tcp"
// or "udp". The lifetime is in seconds. The requested external port is a suggestion; 0
// suggests none.
//
// A lifetime of 0 deletes the mapping of the internal port. With internal port 0, it deletes
// all mappings of this host for the protocol, including those of other programs. With a
// lifetime, internal port 0 is for gateways of VPN providers, some of which require it; other
// gateways refuse it.
func (c *Client) AddPortMapping(protocol string, internalPort, requestedExternalPort int, lifetime int) (*AddPortMappingResult, error) {
	return c.addPortMapping(protocol, internalPort, requestedExternalPort, int64(lifetime))
}

// addPortMapping is AddPortMapping with a lifetime that may be too large for an int.
func (c *Client) addPortMapping(protocol string, internalPort, requestedExternalPort int, lifetime int64) (*AddPortMappingResult, error) {
	r, err := newMapRequest(protocol, internalPort, requestedExternalPort, lifetime)
	if err != nil {
		return nil, err
	}
	var m natpmp.MapResponse
	err = c.withClient(func(ctx context.Context, client *natpmp.Client) (err error) {
		if r.Lifetime == 0 || r.InternalPort == 0 {
			m, err = transactMap(ctx, client, r)
		} else {
			m, err = client.Map(ctx, r)
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case r.Lifetime > 0 && (m.ExternalPort == 0 || m.Lifetime == 0):
		return nil, fmt.Errorf("natpmp: %w: external port %d granted for %v", backends.ErrMalformed, m.ExternalPort, m.Lifetime)
	}
	return &AddPortMappingResult{seconds(m.Epoch), m.InternalPort, m.ExternalPort, seconds(m.Lifetime)}, nil
}

// AddPortMappingWithDuration is AddPortMapping with a lifetime as a duration. It truncates
// the duration to whole seconds, but to one second at least. Only a duration of 0 deletes the
// mapping.
func (c *Client) AddPortMappingWithDuration(protocol string, internalPort, requestedExternalPort int, duration time.Duration) (*AddPortMappingResult, error) {
	if duration < 0 {
		return nil, fmt.Errorf("natpmp: %w: negative duration %v", backends.ErrInvalid, duration)
	}
	if duration > 0 {
		duration = max(duration, time.Second)
	}
	return c.addPortMapping(protocol, internalPort, requestedExternalPort, int64(duration/time.Second))
}

// newMapRequest checks the arguments and returns the request.
func newMapRequest(protocol string, internalPort, externalPort int, lifetime int64) (natpmp.MapRequest, error) {
	invalid := func(format string, args ...any) (natpmp.MapRequest, error) {
		return natpmp.MapRequest{}, fmt.Errorf("natpmp: %w: "+format, append([]any{backends.ErrInvalid}, args...)...)
	}
	proto, err := backends.ParseProtocol(protocol)
	switch {
	case err != nil || proto != backends.TCP && proto != backends.UDP:
		return invalid("protocol %q: only tcp and udp are supported", protocol)
	case internalPort < 0 || internalPort > math.MaxUint16:
		return invalid("internal port %d", internalPort)
	case externalPort < 0 || externalPort > math.MaxUint16:
		return invalid("external port %d", externalPort)
	case lifetime < 0 || lifetime > math.MaxUint32:
		return invalid("lifetime of %d seconds", lifetime)
	}
	r := natpmp.MapRequest{
		Protocol: proto, InternalPort: uint16(internalPort), ExternalPort: uint16(externalPort),
		Lifetime: time.Duration(lifetime) * time.Second,
	}
	if lifetime == 0 {
		r.ExternalPort = 0
	}
	return r, nil
}

// transactMap sends a request that Client.Map refuses: a deletion, or a request with internal
// port 0. Client.Unmap would not return the epoch of the response. transactMap ignores
// responses for other ports: they belong to other requests in progress.
func transactMap(ctx context.Context, client *natpmp.Client, r natpmp.MapRequest) (natpmp.MapResponse, error) {
	request, err := r.MarshalBinary()
	if err != nil {
		return natpmp.MapResponse{}, err
	}
	const maxResponses = 4
	for range maxResponses {
		b, err := client.Transact(ctx, request)
		if err != nil {
			return natpmp.MapResponse{}, err
		}
		m, err := parseMapResponse(b, natpmp.Opcode(request[1]))
		// Gateways of VPN providers return internal port 0.
		if err != nil || m.InternalPort == r.InternalPort || m.InternalPort == 0 || r.InternalPort == 0 {
			return m, err
		}
	}
	return natpmp.MapResponse{}, fmt.Errorf("natpmp: %w: the response is about another port", backends.ErrMalformed)
}

// parseMapResponse parses a response. If the response is a refusal, it returns an error.
func parseMapResponse(b []byte, op natpmp.Opcode) (natpmp.MapResponse, error) {
	e, err := natpmp.ParseErrorResponse(b) // every response begins like an error response
	switch {
	case err != nil:
		return natpmp.MapResponse{}, fmt.Errorf("natpmp: %w: %w", backends.ErrMalformed, err)
	case e.Version != natpmp.Version:
		return natpmp.MapResponse{}, &natpmp.VersionError{Version: e.Version}
	case e.Result != natpmp.Success:
		return natpmp.MapResponse{}, &natpmp.ResultError{Op: op, Code: e.Result, Response: b}
	}
	m, err := natpmp.ParseMapResponse(b)
	if err != nil {
		err = fmt.Errorf("natpmp: %w: %w", backends.ErrMalformed, err)
	}
	return m, err
}
