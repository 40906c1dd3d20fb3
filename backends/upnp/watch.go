package upnp

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
	"github.com/natforward/goforward/discover/ssdp"
	"github.com/natforward/goforward/internal/ctxsync"
)

// queryInterval is the minimum time between queries after hints. The limit is
// needed because any host on the network can cause hints.
const queryInterval = 2 * time.Second

// hint is a reason to query the device, because it may have lost its state.
type hint struct {
	reason string
	// strong means that mappings may be lost, even if the device reports no
	// change. A weak hint causes a Change only if the query confirms one.
	strong bool
	// bootID is the BOOTID of the notification, if any.
	bootID ssdp.ID
}

// sendHint notifies the watchers that the device may have lost its state. It
// does not block. If a hint is already pending, a strong hint replaces it, and a
// weak hint is dropped.
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

// Watch calls notify if the device has announced its start or its end, has lost an
// entry, or has another external address after a NAT-PMP or PCP announcement. It calls
// notify only after it has found the device again. A notification alone does not count as
// a restart; a changed BOOTID or a decreased uptime does.
//
// If Watch cannot listen for notifications, it logs the error and continues
// with the changes that other calls detect.
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
	isLoopback := b.config.Gateway.IsLoopback() // multicast does not reach loopback
	var announced <-chan port5351.Hint          // UPnP does not require a device to announce a new external address
	if b.config.Announce.IsValid() || !isLoopback {
		conn, _ := port5351.Open(port5351.Config{ // New has checked the address
			Gateway: netip.AddrPortFrom(b.config.Gateway, 0), Interface: b.config.Interface, Source: b.config.Source,
		})
		defer conn.Close()
		w, err := conn.Watch(port5351.WatchConfig{Announce: b.config.Announce})
		if err != nil {
			b.log.Warn("upnp: cannot listen for announcements", "err", err)
		}
		defer w.Close()
		announced = w.Hints
	}
	if b.config.Notify.IsValid() || !isLoopback {
		listening.Go(func() {
			l := ssdp.Listener{Addr: b.config.Notify, Interface: b.config.Interface}
			if err := l.Listen(ctx, b.onNotify); err != nil && ctx.Err() == nil {
				b.log.Warn("upnp: cannot listen for notifications", "err", err)
			}
		})
	}
	for {
		select {
		case h := <-hints:
			c, changed := b.confirm(ctx, h)
			if changed {
				select { // drop a pending hint, which has the same cause
				case <-hints:
				default:
				}
				b.calls.Callback(func() { notify(c) })
			}
			_ = ctxsync.Sleep(ctx, b.queryInterval)
		case h := <-announced:
			b.sendHint(hint{reason: h.Reason})
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

// onNotify sends a hint if a notification is from the current device.
func (b *Backend) onNotify(n ssdp.Notification) {
	b.mu.Lock()
	lastSeen := b.lastSeen
	fromDevice := lastSeen.gateway != nil && lastSeen.gateway.matches(n)
	if fromDevice && n.Kind == ssdp.Update && n.BootID == lastSeen.bootID && n.NextBootID.Valid {
		b.lastSeen.bootID = n.NextBootID // the device changed its BOOTID without a restart
	}
	b.mu.Unlock()
	switch {
	case !fromDevice:
	case n.Kind == ssdp.ByeBye:
		b.sendHint(hint{reason: "the gateway sent ssdp:byebye", strong: true})
	case n.Kind == ssdp.Alive && n.BootID.Valid && lastSeen.bootID.Valid && n.BootID != lastSeen.bootID:
		b.sendHint(hint{reason: "the gateway restarted: its BOOTID changed", strong: true, bootID: n.BootID})
	default: // some devices never change their BOOTID
		b.sendHint(hint{reason: "the gateway announced itself"})
	}
}

// matches reports whether a notification is from this device: not from another
// host, and not from another device on the same host.
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

// confirm queries the device and reports whether it has changed, and how.
func (b *Backend) confirm(ctx context.Context, h hint) (backends.Change, bool) {
	b.mu.Lock()
	previous := b.lastSeen
	b.mu.Unlock()
	if h.bootID.Valid && h.bootID == previous.bootID {
		h.strong = false // this restart was already reported
	}
	g, err := b.requery(ctx, previous.bootID, h.strong)
	if err != nil {
		b.log.Debug("upnp: change not confirmed", "hint", h.reason, "err", err)
		return backends.Change{}, false
	}
	current := deviceState{g, g.bootID}
	if h.bootID.Valid {
		current.bootID = h.bootID // some devices send another BOOTID in search responses
	}
	b.mu.Lock()
	if b.lastSeen.bootID != previous.bootID {
		previous.bootID, current.bootID = b.lastSeen.bootID, b.lastSeen.bootID // changed by a notification in the meantime
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
	return backends.Change{Kind: kind, External: g.External, Reason: reason}, true
}

// requery queries the status of the current device, whose last BOOTID is bootID.
// If there is no current device, if it may have moved, or if the query fails,
// requery searches for the device.
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
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.current == current { // it may have been removed in the meantime
				b.current = &g
			}
			return &g, nil
		}
	}
	b.forget(current)
	return b.findGateway(ctx)
}

// deviceState is the state of the device that was last reported to the
// watchers.
type deviceState struct {
	gateway *gateway
	bootID  ssdp.ID
}

// changesSince returns the kind of the change and how it was detected, or 0 if
// there is none.
func (s deviceState) changesSince(previous deviceState) (backends.ChangeKind, string) {
	if previous.gateway == nil {
		return 0, ""
	}
	gateway, previousGateway := s.gateway, previous.gateway
	switch {
	case addrChanged(previousGateway.External, gateway.External): // a connection with another address has a new uptime
		return backends.AddressChanged, fmt.Sprintf("the external address was %v and is %v", previousGateway.External, gateway.External)
	case gateway.restartedSince(previousGateway):
		return backends.Restarted, "the gateway's connection was restarted: its uptime is shorter than expected"
	case s.bootID.Valid && previous.bootID.Valid && s.bootID != previous.bootID:
		return backends.Restarted, "the gateway restarted: its BOOTID changed"
	case gateway.Device.URL != previousGateway.Device.URL:
		return backends.Announced, "the gateway's description has moved to " + gateway.Device.URL
	}
	return 0, ""
}

// restartedSince reports whether the connection was restarted, by comparing
// uptimes. The uptime of one connection only grows, and about as fast as this
// host's clock. Some devices always report the same uptime.
func (g *gateway) restartedSince(previous *gateway) bool {
	const slack = 2 * time.Second
	uptime, previousUptime := g.Status.Uptime, previous.Status.Uptime
	if previousUptime == 0 || uptime == previousUptime || g.Status.Connection == "" {
		return false
	}
	elapsed := g.statusTime.Sub(previous.statusTime)
	return uptime+slack+elapsed/8 < previousUptime+elapsed
}

func addrChanged(before, now netip.Addr) bool {
	return before.IsValid() && now.IsValid() && before != now
}

// recordFound sends a hint to the watchers if a device that was found again has
// changed. If there are no watchers, it only stores the new state.
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
