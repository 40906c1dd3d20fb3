package upnp

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover/ssdp"
	"github.com/natforward/goforward/internal/ctxsync"
)

// between is how far apart the questions are that hints lead to: anybody on the
// network can send hints.
const queryInterval = 2 * time.Second

// hint is a reason to ask the device whether it has lost its state.
type hint struct {
	reason string
	// strong: mappings may be gone, whatever the device says of itself. A weak one
	// takes evidence.
	strong bool
	// boot is the BOOTID that came with it, if any.
	bootID ssdp.ID
}

// signal tells those who watch that the device may have lost its state. It does
// not wait: one signal more says nothing more, but that it is stronger.
func (b *Backend) sendHint(h hint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.watchers {
		if h.strong {
			select {
			case <-c:
			default:
			}
		}
		select {
		case c <- h:
		default:
		}
	}
}

// Watch calls notify after the device said that it has started or goes away, or
// has lost an entry, and was found again. Notifications are hints: it takes
// another BOOTID, or an uptime that went back, to count as a restart.
//
// Where notifications cannot be listened for, Watch goes on with what calls
// notice, and logs why.
func (b *Backend) Watch(ctx context.Context, notify func(backends.Change)) error {
	ctx, end, err := b.calls.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	hints := b.subscribe()
	defer b.unsubscribe(hints)
	var listening sync.WaitGroup
	defer listening.Wait()
	if b.config.Notify.IsValid() || !b.config.Gateway.IsLoopback() { // which no multicast comes from
		listening.Go(func() {
			l := ssdp.Listener{Addr: b.config.Notify, Interface: b.config.Interface}
			if err := l.Listen(ctx, b.onNotify); err != nil && ctx.Err() == nil {
				b.log.Warn("upnp: no notifications", "err", err)
			}
		})
	}
	for {
		select {
		case h := <-hints:
			c, changed := b.confirm(ctx, h)
			if changed {
				select { // of the same event
				case <-hints:
				default:
				}
				b.calls.Callback(func() { notify(c) })
			}
			_ = ctxsync.Sleep(ctx, b.queryInterval)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (b *Backend) subscribe() chan hint {
	hints := make(chan hint, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watchers[hints] = struct{}{}
	return hints
}

func (b *Backend) unsubscribe(hints chan hint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.watchers, hints)
}

// heard makes a hint of a notification of the device that was used last.
func (b *Backend) onNotify(n ssdp.Notification) {
	b.mu.Lock()
	lastSeen := b.lastSeen
	fromDevice := lastSeen.gateway != nil && lastSeen.gateway.matches(n)
	if fromDevice && n.Kind == ssdp.Update && n.BootID == lastSeen.bootID && n.NextBootID.Valid {
		b.lastSeen.bootID = n.NextBootID // without a restart
	}
	b.mu.Unlock()
	switch {
	case !fromDevice:
	case n.Kind == ssdp.ByeBye:
		b.sendHint(hint{reason: "the gateway sent ssdp:byebye", strong: true})
	case n.Kind == ssdp.Alive && n.BootID.Valid && lastSeen.bootID.Valid && n.BootID != lastSeen.bootID:
		b.sendHint(hint{reason: "the gateway started again: its BOOTID changed", strong: true, bootID: n.BootID})
	default: // some never change their BOOTID
		b.sendHint(hint{reason: "the gateway announced itself"})
	}
}

// announces reports whether a notification is one of the device, and not of
// another host or of another device on the same one.
func (g *gateway) matches(n ssdp.Notification) bool {
	if n.From.Addr().Unmap().WithZone("") != g.Device.Host.WithZone("") {
		return false
	}
	udn := n.UDN()
	for _, s := range g.Device.Services {
		if udn == s.UDN {
			return true
		}
	}
	return udn == g.Device.UDN || g.Device.UDN == ""
}

// confirm asks the device, and says what has changed, if anything.
func (b *Backend) confirm(ctx context.Context, h hint) (backends.Change, bool) {
	b.mu.Lock()
	previous := b.lastSeen
	b.mu.Unlock()
	if h.bootID.Valid && h.bootID == previous.bootID {
		h.strong = false // told already
	}
	now, err := b.requery(ctx, previous.bootID, h.strong)
	if err != nil {
		b.log.Debug("upnp: not confirmed", "hint", h.reason, "err", err)
		return backends.Change{}, false
	}
	current := deviceState{now, now.bootID}
	if h.bootID.Valid {
		current.bootID = h.bootID // some answer searches with another
	}
	b.mu.Lock()
	if b.lastSeen.bootID != previous.bootID {
		previous.bootID, current.bootID = b.lastSeen.bootID, b.lastSeen.bootID // told meanwhile
	}
	b.lastSeen = current
	b.mu.Unlock()
	kind, reason := current.changesSince(previous)
	switch {
	case kind == 0 && !h.strong:
		return backends.Change{}, false
	case kind == 0:
		kind, reason = backends.Announced, h.reason
	}
	return backends.Change{Kind: kind, External: now.External, Reason: reason}, true
}

// again asks the device in use, whose BOOTID is boot, what it says of itself or,
// where it may be elsewhere, looks for it.
func (b *Backend) requery(ctx context.Context, bootID ssdp.ID, mayHaveMoved bool) (*gateway, error) {
	b.mu.Lock()
	current := b.current
	b.mu.Unlock()
	if current == nil {
		return b.findGateway(ctx)
	}
	if !mayHaveMoved {
		g := *current
		g.Status, g.bootID = Status{}, bootID
		if b.queryStatus(ctx, &g) == nil {
			b.setExternal(g.External)
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.current == current { // or it was lost meanwhile
				b.current = &g
			}
			return &g, nil
		}
	}
	b.forget(current)
	return b.findGateway(ctx)
}

// known is the device as those who watch know it.
type deviceState struct {
	gateway *gateway
	bootID  ssdp.ID
}

// since says what has changed, and how that is seen, or 0.
func (s deviceState) changesSince(previous deviceState) (backends.ChangeKind, string) {
	if previous.gateway == nil {
		return 0, ""
	}
	gateway, previousGateway := s.gateway, previous.gateway
	switch {
	case gateway.restartedSince(previousGateway):
		return backends.Restarted, "the gateway's connection is younger than it was"
	case addrChanged(previousGateway.External, gateway.External):
		return backends.AddressChanged, fmt.Sprintf("the external address was %v and is %v", previousGateway.External, gateway.External)
	case s.bootID.Valid && previous.bootID.Valid && s.bootID != previous.bootID:
		return backends.Restarted, "the gateway started again: its BOOTID changed"
	case gateway.Device.URL != previousGateway.Device.URL:
		return backends.Announced, "the gateway's description has moved to " + gateway.Device.URL
	}
	return 0, ""
}

// restarted compares uptimes: of one connection it only grows, and about as fast
// as ours. Some devices tell the same for ever.
func (g *gateway) restartedSince(previous *gateway) bool {
	const slack = 2 * time.Second
	now, then := g.Status.Uptime, previous.Status.Uptime
	if then == 0 || now == then || g.Status.Connection == "" {
		return false
	}
	elapsed := g.statusTime.Sub(previous.statusTime)
	return now+slack+elapsed/8 < then+elapsed
}

func addrChanged(before, now netip.Addr) bool {
	return before.IsValid() && now.IsValid() && before != now
}

// remembered tells those who watch where a device that was found again has
// changed. Where nobody watches, nobody has to know.
func (b *Backend) recordFound(g *gateway) {
	current := deviceState{g, g.bootID}
	b.mu.Lock()
	previous := b.lastSeen
	if previous.gateway == nil || len(b.watchers) == 0 {
		b.lastSeen = current
	}
	b.mu.Unlock()
	if _, reason := current.changesSince(previous); reason != "" {
		b.sendHint(hint{reason: reason, strong: true})
	}
}
