package upnp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// Unmap deletes the mapping. It succeeds if the device has no such entry, or if
// another client now has the port. If the device does not report the owner of
// the port, Unmap deletes only mappings with a Token: Map, Renew, List and
// EntryAt set the Token.
func (b *Backend) Unmap(ctx context.Context, m backends.Mapping) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Delete)
	if err := m.Check(); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	if m.External.Port() == 0 {
		return fmt.Errorf("upnp: %w: a mapping without an external port", backends.ErrInvalid)
	}
	unmap := func() error {
		return b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
			if b.is6 {
				return b.closePinhole(ctx, g, m)
			}
			return b.deleteEntry(ctx, g, m)
		})
	}
	err := unmap()
	if isConnectionCut(err) && ctx.Err() == nil { // the device may not have processed the request
		err = unmap()
	}
	return err
}

// isConnectionCut reports whether the connection ended before the response.
func isConnectionCut(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) && op.Op == "read" && !op.Timeout()
}

// deleteEntry deletes the entry of a mapping, unless the device reports that the entry
// belongs to another client. It asks the service that granted the mapping, or all services
// if that is unknown.
func (b *Backend) deleteEntry(ctx context.Context, g *gateway, m backends.Mapping) error {
	unlock, err := g.lockTable(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	want := g.entryOf(m)
	clients, elsewhere := g.clientsFor(m.Token)
	mayBeForeign := m.Token.IsZero() // unless the table shows that the entry is this host's
	ownerUnknown := fmt.Errorf("upnp: %w: the device does not report the owner of %v port %d", backends.ErrUnsupported, m.Protocol, m.External.Port())
	errs := make([]error, len(clients))
	isKnown := false // whether a service has the entry, or certainly does not have it
	for i, c := range clients {
		row, result, err := b.lookUp(ctx, c, want)
		switch {
		case err != nil:
			return err
		case elsewhere && result != found:
			errs[i] = fmt.Errorf("upnp: %w: the device that granted %v port %d is not in use, and %v does not list it",
				backends.ErrNoReply, m.Protocol, m.External.Port(), g.Device.Host)
		case result == found && mayBeForeign && !row.Internal.Addr().IsValid():
			return ownerUnknown
		case result == otherEntry, result == missing, result == unseen && mayBeForeign:
		case result == found, !mayBeForeign:
			errs[i] = b.remove(ctx, g, c, want)
		default:
			errs[i] = ownerUnknown
			continue
		}
		isKnown = isKnown || errs[i] == nil
	}
	if isKnown { // a service that does not support the actions cannot have the entry
		errs = slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, backends.ErrUnsupported) })
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}
