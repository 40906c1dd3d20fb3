package upnp

import (
	"context"
	"errors"
	"fmt"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/ctxsync"
)

// errChanged is returned by Check if the device shows a change that Watch reports.
var errChanged = errors.New("upnp: the gateway has restarted or has another external address")

// Check requests the state of the connection and the external address, and looks up the
// entry of the mapping. If the state shows a restart or a new address, Watch reports that.
// Pinholes cannot be looked up.
func (b *Backend) Check(ctx context.Context, m backends.Mapping) error {
	return b.check(ctx, m, b.checkStatus)
}

// LookUp looks up the entry of a mapping in the table of the device. Its results are those of
// Check. The mapping may be of another backend: many gateways list the mappings of all
// protocols in one table.
func (b *Backend) LookUp(ctx context.Context, m backends.Mapping) error {
	return b.check(ctx, m, func(context.Context, *gateway) error { return nil })
}

func (b *Backend) check(ctx context.Context, m backends.Mapping, checkStatus func(context.Context, *gateway) error) error {
	ctx = ctxsync.DefaultPriority(ctx, ctxsync.Check)
	if err := m.Check(); err != nil {
		return fmt.Errorf("upnp: %w", err)
	}
	return b.withDevice(ctx, func(ctx context.Context, g *gateway) error {
		if err := checkStatus(ctx, g); err != nil {
			return err
		}
		if b.is6 {
			return fmt.Errorf("upnp: %w: an IPv6 firewall does not list its pinholes", backends.ErrUnsupported)
		}
		return b.checkEntry(ctx, g, m)
	})
}

// checkStatus requests the state of the device. If it has changed since Watch last reported
// it, checkStatus sends a hint to Watch and returns errChanged.
func (b *Backend) checkStatus(ctx context.Context, g *gateway) error {
	b.mu.Lock()
	previous := b.lastSeen
	b.mu.Unlock()
	now := *g
	now.Status, now.bootID = Status{}, previous.bootID
	if err := b.queryStatus(ctx, &now); err != nil {
		return err
	}
	if kind, reason := (deviceState{&now, now.bootID}).changesSince(previous); kind != 0 {
		b.sendHint(hint{reason: reason})
		return errChanged
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == g && b.lastSeen == previous && previous.gateway == g && g.Status.Uptime == 0 && now.Status.Uptime != 0 {
		// A device that has just started reports 0. With that, no later uptime shows a restart.
		seen := *g
		seen.Status, seen.statusTime = now.Status, now.statusTime
		b.current, b.lastSeen.gateway = &seen, &seen
	}
	return nil
}

// checkEntry looks up the entry of a mapping at the service that granted it, or at all
// services if that is unknown. It waits for calls that change the table: a renewal may delete
// the entry and create it again.
func (b *Backend) checkEntry(ctx context.Context, g *gateway, m backends.Mapping) error {
	unlock, err := g.lockTable(ctx)
	if err != nil {
		return fmt.Errorf("upnp: the table is in use: %v", err) //nolint:errorlint // %v: the device is not silent
	}
	defer unlock()
	want := g.entryOf(m)
	clients, elsewhere := g.clientsFor(m.Token)
	missing := !elsewhere
	for _, c := range clients {
		e, shown, err := b.lookUp(ctx, c, want)
		switch {
		case err != nil:
			return err
		case shown == found && e.Enabled:
			return nil
		}
		missing = missing && (shown.isAbsent() || shown == otherEntry)
	}
	if missing {
		return fmt.Errorf("upnp: %w: %v port %d is missing from the gateway's table", backends.ErrNoMapping, m.Protocol, m.External.Port())
	}
	return fmt.Errorf("upnp: %w: the device cannot look up %v port %d", backends.ErrUnsupported, m.Protocol, m.External.Port())
}
