package nat

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
)

// Gateway is a [NAT] that a Forwarder keeps. Its methods may be called by several
// goroutines at once. Those without a context are bounded by the Forwarder's
// Timeout.
type Gateway struct {
	forwarder *forward.Forwarder
	owned     bool

	ctx    context.Context //nolint:containedctx // the life of the Gateway; bounds no call of a caller
	cancel context.CancelCauseFunc
	calls  sync.WaitGroup // callers inside, and deletions that they did not wait for

	mu     sync.Mutex
	closed bool
	slots  map[key]*slot
}

// New returns a Gateway that maps by a Forwarder of the caller's, who closes
// both: first the Gateway. It does no I/O.
func New(f *forward.Forwarder) *Gateway {
	g := &Gateway{forwarder: f, slots: map[key]*slot{}}
	g.ctx, g.cancel = context.WithCancelCause(context.Background())
	return g
}

// Close deletes what was mapped by this Gateway, within the Forwarder's Timeout;
// one of DiscoverGateway takes two seconds at most, whether or not the gateway
// answers. Calls under way fail with net.ErrClosed, and so do later ones. A
// second call returns nil.
func (g *Gateway) Close() error {
	g.mu.Lock()
	closed := g.closed
	g.closed = true
	g.mu.Unlock()
	g.cancel(forward.ErrClosed)
	if closed {
		return nil
	}
	g.unshare()
	if g.owned {
		defer g.calls.Wait() // they end with the Forwarder
		return g.forwarder.Close()
	}
	g.calls.Wait()
	return g.closeMappings()
}

// begin counts a call in, and bounds its context by the Gateway's life. The
// function that it returns counts the call out.
func (g *Gateway) begin(ctx context.Context) (context.Context, func(), error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil, fmt.Errorf("gonat: %w", forward.ErrClosed)
	}
	g.calls.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(g.ctx, func() { cancel(forward.ErrClosed) })
	return ctx, func() { stop(); cancel(nil); g.calls.Done() }, nil
}

// found is the gateway that answers, which the Forwarder remembers.
func (g *Gateway) found(ctx context.Context) (forward.Gateway, error) {
	ctx, end, err := g.begin(ctx)
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

// Type names the protocol that mappings go by: "NAT-PMP", "PCP", "UPnP", or
// "direct" where no NAT stands before this host. It is "unknown" where nothing
// answers.
func (g *Gateway) Type() string {
	if m := g.standing(); m != nil {
		return title(m.Backend())
	}
	if gw, err := g.found(context.Background()); err == nil && len(gw.Backends) > 0 {
		return title(gw.Backends[0])
	}
	return "unknown"
}

func title(backend string) string {
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
	gw, err := g.found(context.Background())
	if err == nil && !gw.Addr.IsValid() {
		err = fmt.Errorf("%w: %w: the address is not known", ErrNoNATFound, backends.ErrUnsupported)
	}
	return ip(gw.Addr.Addr()), err
}

// GetExternalAddress asks the gateway for its external address. Where it does
// not answer just now, that of a mapping which stands is returned. It fails with
// ErrNoExternalAddress.
func (g *Gateway) GetExternalAddress() (net.IP, error) {
	ctx, end, err := g.begin(context.Background())
	if err != nil {
		return nil, err
	}
	defer end()
	addr, err := g.forwarder.ExternalIP(ctx)
	if m := g.standing(); err != nil && m != nil {
		if last := m.External().Addr(); last.IsValid() {
			return ip(last), nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoExternalAddress, err)
	}
	return ip(addr), nil
}

// GetInternalAddress returns the address of this host that the gateway sees. It
// sends nothing, and fails with ErrNoInternalAddress.
func (g *Gateway) GetInternalAddress() (net.IP, error) {
	ctx, end, err := g.begin(context.Background())
	if err != nil {
		return nil, err
	}
	defer end()
	addr, err := g.forwarder.LocalIP(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoInternalAddress, err)
	}
	return ip(addr), nil
}

// ip is nil for the zero Addr.
func ip(addr netip.Addr) net.IP { return addr.Unmap().AsSlice() }
