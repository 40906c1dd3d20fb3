package nat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/natforward/goforward/adapters/internal/held"
	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/ctxsync"
)

// These errors have the names that they have in go-nat. The methods return errors that wrap
// one of them and the cause.
var (
	ErrNoExternalAddress = errors.New("no external address")
	ErrNoInternalAddress = errors.New("no internal address")
	ErrNoNATFound        = errors.New("no NAT found")
)

// NAT has the methods of go-nat's interface NAT. [Gateway] implements and documents them.
type NAT interface {
	Type() string
	GetDeviceAddress() (addr net.IP, err error)
	GetExternalAddress() (addr net.IP, err error)
	GetInternalAddress() (addr net.IP, err error)
	AddPortMapping(ctx context.Context, protocol string, internalPort int, description string, timeout time.Duration) (mappedExternalPort int, err error)
	DeletePortMapping(ctx context.Context, protocol string, internalPort int) (err error)
}

var _ NAT = (*Gateway)(nil)

// Gateway is a [NAT] whose mappings a Forwarder keeps. Several goroutines may call its
// methods at once. A method without a context takes at most the RequestTimeout of the
// Forwarder's Config. Create it with New or DiscoverGateway.
type Gateway struct {
	forwarder *forward.Forwarder
	held      *held.Table
	calls     ctxsync.Calls
}

// New returns a Gateway that maps ports with f. The caller closes the Gateway first, and
// then f. New does no I/O.
func New(f *forward.Forwarder) *Gateway { return &Gateway{forwarder: f, held: held.New("gonat")} }

var errClosed = fmt.Errorf("gonat: %w", forward.ErrClosed)

// Close deletes all mappings of this Gateway at the same time. It takes as long as
// [forward.Mapping.Close]. Calls in progress and later calls fail with net.ErrClosed. A
// second call of Close returns nil.
func (g *Gateway) Close() error {
	g.clearShared()
	g.calls.Close(errClosed)
	return g.held.Close()
}

// discover returns the gateway that the Forwarder found. The Forwarder caches it.
func (g *Gateway) discover(ctx context.Context) (forward.Gateway, error) {
	ctx, end, err := g.calls.Begin(ctx)
	if err != nil {
		return forward.Gateway{}, err
	}
	defer end()
	gw, err := g.forwarder.Gateway(ctx)
	if err != nil {
		return gw, fmt.Errorf("%w: %w", ErrNoNATFound, err)
	}
	return gw, nil
}

// AddPortMapping makes the gateway forward a port to internalPort of this host, and returns
// the external port. The protocol is "tcp" or "udp", in upper or lower case. The external
// port has the same number as the internal port if the gateway grants it. The mapping is
// renewed until DeletePortMapping or Close.
//
// There is one mapping for a protocol and internalPort. If it exists already,
// AddPortMapping returns its current external port, and sends nothing while the mapping is
// active. If the mapping was lost, AddPortMapping requests it at once. If that request
// fails, AddPortMapping returns the error, and the Gateway keeps retrying. If the first call
// fails, the Gateway holds no mapping.
//
// The timeout is the requested lifetime of each grant. If the program crashes, the gateway
// deletes the mapping when its lifetime ends. A timeout of zero or less is the Lifetime of
// the Forwarder's Config. An empty description is the Description of that Config. The
// timeout and the description of the first call apply as long as the mapping exists.
//
// Other protocols and ports out of range fail with backends.ErrInvalid.
func (g *Gateway) AddPortMapping(ctx context.Context, protocol string, internalPort int, description string, timeout time.Duration) (int, error) {
	k, err := g.held.Key(protocol, internalPort)
	if err != nil {
		return 0, err
	}
	ctx, end, err := g.calls.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	opts := []forward.Option{forward.Protocol(k.Protocol, k.Port), forward.NoDefault()}
	if timeout > 0 {
		opts = append(opts, forward.Lifetime(timeout))
	}
	if description != "" {
		opts = append(opts, forward.Description(description))
	}
	port, err := g.held.Port(ctx, k, func(ctx context.Context) (*forward.Mapping, error) {
		return g.forwarder.Enable(ctx, opts...)
	})
	return int(port), err
}

// DeletePortMapping deletes the mapping from the gateway. If this Gateway has no such
// mapping, it succeeds. If the gateway does not delete the mapping, DeletePortMapping returns
// an error; the mapping is no longer renewed, and ends with its lifetime. If ctx ends,
// DeletePortMapping returns, and the deletion continues.
func (g *Gateway) DeletePortMapping(ctx context.Context, protocol string, internalPort int) error {
	k, err := g.held.Key(protocol, internalPort)
	if err != nil {
		return err
	}
	ctx, end, err := g.calls.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return g.held.Remove(ctx, k)
}

// activeMapping returns any mapping that the gateway forwards now, or nil.
func (g *Gateway) activeMapping() *forward.Mapping {
	ms, _ := g.held.Mappings()
	for _, m := range ms {
		if m.External().Port() != 0 {
			return m
		}
	}
	return nil
}

// Type returns the name of the protocol that creates the mappings: "NAT-PMP", "PCP", "UPnP",
// or "direct" if there is no NAT between this host and the internet. If there is no reply, it
// returns "unknown".
func (g *Gateway) Type() string {
	if m := g.activeMapping(); m != nil {
		return protocolName(m.Backend())
	}
	if gw, err := g.discover(context.Background()); err == nil && len(gw.Backends) > 0 {
		return protocolName(gw.Backends[0])
	}
	return "unknown"
}

// protocolName returns the name that go-nat uses for a backend.
func protocolName(backend string) string {
	switch backend {
	case natpmp.Name:
		return "NAT-PMP"
	case pcp.Name:
		return "PCP"
	case upnp.Name:
		return "UPnP"
	}
	return backend
}

// GetDeviceAddress returns the gateway's address on the internal network. It fails with
// ErrNoNATFound if there is no reply, or if the Forwarder's backends do not report the
// address.
func (g *Gateway) GetDeviceAddress() (net.IP, error) {
	gw, err := g.discover(context.Background())
	if err == nil && !gw.Addr.IsValid() {
		err = fmt.Errorf("%w: %w: the address is unknown", ErrNoNATFound, backends.ErrUnsupported)
	}
	return toNetIP(gw.Addr.Addr()), err
}

// GetExternalAddress requests the external address from the gateway. If the request fails
// and a mapping is active, it returns the external address of that mapping. Otherwise it
// fails with ErrNoExternalAddress.
func (g *Gateway) GetExternalAddress() (net.IP, error) {
	ctx, end, err := g.calls.Begin(context.Background())
	if err != nil {
		return nil, err
	}
	defer end()
	addr, err := g.forwarder.ExternalIP(ctx)
	if m := g.activeMapping(); err != nil && m != nil {
		if last := m.External().Addr(); last.IsValid() {
			return toNetIP(last), nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoExternalAddress, err)
	}
	return toNetIP(addr), nil
}

// GetInternalAddress returns the address of this host that the gateway forwards to. It sends
// nothing. If there is no such address, it fails with ErrNoInternalAddress.
func (g *Gateway) GetInternalAddress() (net.IP, error) {
	ctx, end, err := g.calls.Begin(context.Background())
	if err != nil {
		return nil, err
	}
	defer end()
	addr, err := g.forwarder.LocalIP(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoInternalAddress, err)
	}
	return toNetIP(addr), nil
}

// toNetIP converts an address. It returns nil for the zero Addr.
func toNetIP(addr netip.Addr) net.IP { return addr.Unmap().AsSlice() }
