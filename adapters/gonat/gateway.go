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

// The errors of go-nat. What they wrap says why.
var (
	ErrNoExternalAddress = errors.New("no external address")
	ErrNoInternalAddress = errors.New("no internal address")
	ErrNoNATFound        = errors.New("no NAT found")
)

// NAT is go-nat's interface. [Gateway] says what its methods do here.
type NAT interface {
	Type() string
	GetDeviceAddress() (addr net.IP, err error)
	GetExternalAddress() (addr net.IP, err error)
	GetInternalAddress() (addr net.IP, err error)
	AddPortMapping(ctx context.Context, protocol string, internalPort int, description string, timeout time.Duration) (mappedExternalPort int, err error)
	DeletePortMapping(ctx context.Context, protocol string, internalPort int) (err error)
}

var _ NAT = (*Gateway)(nil)

// Gateway is a [NAT] that a Forwarder keeps. Its methods may be called by several
// goroutines at once. Those without a context are bounded by the RequestTimeout of the
// Forwarder's Config.
type Gateway struct {
	forwarder *forward.Forwarder
	held      *held.Table
	calls     ctxsync.Calls
}

// New returns a Gateway that maps by a Forwarder of the caller's, who closes
// both: first the Gateway. It does no I/O.
func New(f *forward.Forwarder) *Gateway { return &Gateway{forwarder: f, held: held.New("gonat")} }

var errClosed = fmt.Errorf("gonat: %w", forward.ErrClosed)

// Close deletes what was mapped by this Gateway, all at once, in the time of
// [forward.Mapping.Close]. Calls under way fail with net.ErrClosed, and so do later
// ones. A second call returns nil.
func (g *Gateway) Close() error {
	g.clearShared()
	g.calls.Close(errClosed)
	return g.held.Close()
}

// discover is the gateway that answers, which the Forwarder remembers.
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

// AddPortMapping maps an internal port of this host, TCP or UDP ("tcp" or "udp", in
// any case), and returns the external port: the same number if the gateway
// allows. The mapping is kept alive until DeletePortMapping or Close.
//
// Called again, it returns the external port of now, and sends nothing while the
// mapping stands; where it does not, it is asked for at once. A failure then is
// that of this attempt, and others follow: the mapping is still kept. A failure
// of the first call keeps nothing.
//
// The timeout is how long each grant is to last, and so how long the gateway
// forwards in vain to a program that crashed. Zero and less is the Forwarder's
// Lifetime. It and the description, of which the empty one is the Forwarder's,
// are those of the call that made the mapping.
//
// Another protocol and a port out of range fail with backends.ErrInvalid.
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

// DeletePortMapping takes the mapping away from the gateway. Where there is
// none that this Gateway made, it succeeds. One that the gateway does not take away
// is left to its lifetime, and the error says so. A context that ends is not
// obeyed by the deletion itself, which goes on.
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

// activeMapping is a mapping that the gateway forwards now, or nil.
func (g *Gateway) activeMapping() *forward.Mapping {
	ms, _ := g.held.Mappings()
	for _, m := range ms {
		if m.External().Port() != 0 {
			return m
		}
	}
	return nil
}

// Type names the protocol that mappings go by: "NAT-PMP", "PCP", "UPnP", or
// "direct" where no NAT stands before this host. It is "unknown" where nothing
// answers.
func (g *Gateway) Type() string {
	if m := g.activeMapping(); m != nil {
		return protocolName(m.Backend())
	}
	if gw, err := g.discover(context.Background()); err == nil && len(gw.Backends) > 0 {
		return protocolName(gw.Backends[0])
	}
	return "unknown"
}

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

// GetDeviceAddress returns the address of the gateway on this side. It fails
// with ErrNoNATFound where nothing answers, or the Forwarder's backends do not
// tell.
func (g *Gateway) GetDeviceAddress() (net.IP, error) {
	gw, err := g.discover(context.Background())
	if err == nil && !gw.Addr.IsValid() {
		err = fmt.Errorf("%w: %w: the address is not known", ErrNoNATFound, backends.ErrUnsupported)
	}
	return toNetIP(gw.Addr.Addr()), err
}

// GetExternalAddress asks the gateway for its external address. Where it does
// not answer just now, that of a mapping which stands is returned. It fails with
// ErrNoExternalAddress.
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

// GetInternalAddress returns the address of this host that the gateway sees. It
// sends nothing, and fails with ErrNoInternalAddress.
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

// ip is nil for the zero Addr.
func toNetIP(addr netip.Addr) net.IP { return addr.Unmap().AsSlice() }
