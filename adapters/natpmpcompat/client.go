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

// GetExternalAddressResult is the answer to GetExternalAddress.
type GetExternalAddressResult struct {
	// SecondsSinceStartOfEpoc is the time since the gateway's table was last empty.
	SecondsSinceStartOfEpoc uint32
	ExternalIPAddress       [4]byte
}

// GetExternalAddress asks for the gateway's external address.
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

// seconds is the wire's unit, which the duration was read from.
func seconds(d time.Duration) uint32 {
	return uint32(d / time.Second) //nolint:gosec // it was a uint32
}

// RECOMMENDED_MAPPING_LIFETIME_SECONDS is a lifetime for AddPortMapping: an hour.
const RECOMMENDED_MAPPING_LIFETIME_SECONDS = 3600 //nolint:staticcheck // it is called so

// AddPortMappingResult is the answer to AddPortMapping: what the gateway granted,
// which need not be what it was asked for.
type AddPortMappingResult struct {
	// SecondsSinceStartOfEpoc is the time since the gateway's table was last empty.
	SecondsSinceStartOfEpoc      uint32
	InternalPort                 uint16
	MappedExternalPort           uint16
	PortMappingLifetimeInSeconds uint32
}

// AddPortMapping asks for a mapping of an internal port of this host, "tcp" or
// "udp", for a lifetime in seconds. The external port is a wish, and 0 none.
//
// A lifetime of 0 deletes the mapping of the internal port, and with internal port
// 0 all mappings of the protocol that this host has, also those of other programs.
// With a lifetime, internal port 0 is what some gateways of VPN providers want:
// others refuse it.
func (c *Client) AddPortMapping(protocol string, internalPort, requestedExternalPort int, lifetime int) (*AddPortMappingResult, error) {
	return c.addPortMapping(protocol, internalPort, requestedExternalPort, int64(lifetime))
}

// addPortMapping takes the lifetime in seconds, which need not fit into an int.
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

// AddPortMappingWithDuration is AddPortMapping for a lifetime that is cut to
// whole seconds, but to one at least: only 0 deletes.
func (c *Client) AddPortMappingWithDuration(protocol string, internalPort, requestedExternalPort int, duration time.Duration) (*AddPortMappingResult, error) {
	if duration < 0 {
		return nil, fmt.Errorf("natpmp: %w: negative duration %v", backends.ErrInvalid, duration)
	}
	if duration > 0 {
		duration = max(duration, time.Second)
	}
	return c.addPortMapping(protocol, internalPort, requestedExternalPort, int64(duration/time.Second))
}

// request checks the arguments.
func newMapRequest(protocol string, internalPort, externalPort int, lifetime int64) (natpmp.MapRequest, error) {
	invalid := func(format string, args ...any) (natpmp.MapRequest, error) {
		return natpmp.MapRequest{}, fmt.Errorf("natpmp: %w: "+format, append([]any{backends.ErrInvalid}, args...)...)
	}
	proto, err := backends.ParseProtocol(protocol)
	switch {
	case err != nil || proto != backends.TCP && proto != backends.UDP:
		return invalid("protocol %q: there is tcp and udp", protocol)
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

// raw asks for what Client.Map refuses: a deletion, whose answer has the epoch,
// and internal port 0. Answers to requests about other ports, which go on at the
// same time, are passed over.
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
		// Gateways of VPN providers name no internal port.
		if err != nil || m.InternalPort == r.InternalPort || m.InternalPort == 0 || r.InternalPort == 0 {
			return m, err
		}
	}
	return natpmp.MapResponse{}, fmt.Errorf("natpmp: %w: the gateway answers about another port", backends.ErrMalformed)
}

// read reads an answer, and makes a refusal an error.
func parseMapResponse(b []byte, op natpmp.Opcode) (natpmp.MapResponse, error) {
	e, err := natpmp.ParseErrorResponse(b) // every answer begins like one
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
