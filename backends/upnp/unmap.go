package upnp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Unmap deletes the mapping. Where the device has none, or somebody else has the
// port by now, it succeeds. A device that does not tell whose the port is, deletes
// only what has a Token: what was granted, or listed.
func (b *Backend) Unmap(ctx context.Context, m backends.Mapping) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Delete)
	if err := m.Check(); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	if m.External.Port() == 0 {
		return fmt.Errorf("upnp: %w: a mapping without an external port", backends.ErrInvalid)
	}
	remove := func() error {
		return b.do(ctx, func(ctx context.Context, g *gateway) error {
			if b.is6 {
				return b.closePinhole(ctx, g, m)
			}
			return b.remove(ctx, g, m)
		})
	}
	err := remove()
	if isCut(err) && ctx.Err() == nil { // TCP does not repeat the request
		err = remove()
	}
	return err
}

// isCut reports whether a connection ended before its reply.
func isCut(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) && op.Op == "read" && !op.Timeout()
}

// remove deletes an entry if it is the mapping's, as far as the device tells.
func (b *Backend) remove(ctx context.Context, g *gateway, m backends.Mapping) error {
	end, err := g.takeTable(ctx)
	if err != nil {
		return err
	}
	defer end()
	c := g.clientFor(m.Token)
	key := PortMappingKey{Remote: only(m.Remote), ExternalPort: m.External.Port(), Protocol: m.Protocol}
	e, err := c.PortMapping(ctx, key)
	switch {
	case err == nil && e.Internal.Addr().IsValid() && e.Internal != g.internal(m.Internal):
		return nil
	case absent(err):
		return nil
	case err != nil && unlessAnswered(err) != nil:
		return err
	case err != nil && m.Token.IsZero(): // not what was granted, but what somebody thinks was
		return fmt.Errorf("upnp: %w: the device does not tell whose %v port %d is: %w", backends.ErrUnsupported, m.Protocol, m.External.Port(), err)
	}
	if err := c.DeletePortMapping(ctx, key); !absent(err) {
		return err
	}
	return nil
}
