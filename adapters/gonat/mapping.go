package nat

import (
	"context"
	"time"

	"github.com/natforward/goforward/forward"
)

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

// standing is a mapping that the gateway forwards now, or nil.
func (g *Gateway) standing() *forward.Mapping {
	ms, _ := g.held.Mappings()
	for _, m := range ms {
		if m.External().Port() != 0 {
			return m
		}
	}
	return nil
}
