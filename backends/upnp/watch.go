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
const between = 2 * time.Second

// hint is a reason to ask the device whether it has lost its state.
type hint struct {
	reason string
	// strong: mappings may be gone, whatever the device says of itself. A weak one
	// takes evidence.
	strong bool
	// boot is the BOOTID that came with it, if any.
	boot ssdp.ID
}

// signal tells those who watch that the device may have lost its state. It does
// not wait: one signal more says nothing more, but that it is stronger.
func (b *Backend) signal(h hint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.signals {
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
			if err := l.Listen(ctx, b.heard); err != nil && ctx.Err() == nil {
				b.log.Warn("upnp: no notifications", "err", err)
			}
		})
	}
	for {
		select {
		case h := <-hints:
			c, is := b.confirm(ctx, h)
			if is {
				select { // of the same event
				case <-hints:
				default:
				}
				b.calls.Callback(func() { notify(c) })
			}
			_ = ctxsync.Sleep(ctx, b.between)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (b *Backend) subscribe() chan hint {
	hints := make(chan hint, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.signals[hints] = struct{}{}
	return hints
}

func (b *Backend) unsubscribe(hints chan hint) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.signals, hints)
}

// heard makes a hint of a notification of the device that was used last.
func (b *Backend) heard(n ssdp.Notification) {
	b.mu.Lock()
	known := b.known
	about := known.gateway != nil && known.gateway.announces(n)
	if about && n.Kind == ssdp.Update && n.BootID == known.boot && n.NextBootID.Valid {
		b.known.boot = n.NextBootID // without a restart
	}
	b.mu.Unlock()
	switch {
	case !about:
	case n.Kind == ssdp.ByeBye:
		b.signal(hint{reason: "the gateway said goodbye", strong: true})
	case n.Kind == ssdp.Alive && n.BootID.Valid && known.boot.Valid && n.BootID != known.boot:
		b.signal(hint{reason: "the gateway started again: its BOOTID changed", strong: true, boot: n.BootID})
	default: // some never change their BOOTID
		b.signal(hint{reason: "the gateway announced itself"})
	}
}

// announces reports whether a notification is one of the device, and not of
// another host or of another device on the same one.
func (g *gateway) announces(n ssdp.Notification) bool {
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
	before := b.known
	b.mu.Unlock()
	if h.boot.Valid && h.boot == before.boot {
		h.strong = false // told already
	}
	now, err := b.again(ctx, before.boot, h.strong)
	if err != nil {
		b.log.Debug("upnp: not confirmed", "hint", h.reason, "err", err)
		return backends.Change{}, false
	}
	after := known{now, now.bootID}
	if h.boot.Valid {
		after.boot = h.boot // some answer searches with another
	}
	b.mu.Lock()
	if b.known.boot != before.boot {
		before.boot, after.boot = b.known.boot, b.known.boot // told meanwhile
	}
	b.known = after
	b.mu.Unlock()
	kind, reason := after.since(before)
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
func (b *Backend) again(ctx context.Context, boot ssdp.ID, elsewhere bool) (*gateway, error) {
	b.mu.Lock()
	current := b.found
	b.mu.Unlock()
	if current == nil {
		return b.find(ctx)
	}
	if !elsewhere {
		g := *current
		g.Status, g.bootID = Status{}, boot
		if b.interview(ctx, &g) == nil {
			b.remember(g.External)
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.found == current { // or it was lost meanwhile
				b.found = &g
			}
			return &g, nil
		}
	}
	b.lose(current)
	return b.find(ctx)
}

// known is the device as those who watch know it.
type known struct {
	gateway *gateway
	boot    ssdp.ID
}

// since says what has changed, and how that is seen, or 0.
func (now known) since(before known) (backends.ChangeKind, string) {
	if before.gateway == nil {
		return 0, ""
	}
	g, old := now.gateway, before.gateway
	switch {
	case g.restarted(old):
		return backends.Restarted, "the gateway's connection is younger than it was"
	case changed(old.External, g.External):
		return backends.AddressChanged, fmt.Sprintf("the external address was %v and is %v", old.External, g.External)
	case now.boot.Valid && before.boot.Valid && now.boot != before.boot:
		return backends.Restarted, "the gateway started again: its BOOTID changed"
	case g.Device.URL != old.Device.URL:
		return backends.Announced, "the gateway's description has moved to " + g.Device.URL
	}
	return 0, ""
}

// restarted compares uptimes: of one connection it only grows, and about as fast
// as ours. Some devices tell the same for ever.
func (g *gateway) restarted(before *gateway) bool {
	const slack = 2 * time.Second
	now, then := g.Status.Uptime, before.Status.Uptime
	if then == 0 || now == then || g.Status.Connection == "" {
		return false
	}
	passed := g.seen.Sub(before.seen)
	return now+slack+passed/8 < then+passed
}

func changed(before, now netip.Addr) bool {
	return before.IsValid() && now.IsValid() && before != now
}

// remembered tells those who watch where a device that was found again has
// changed. Where nobody watches, nobody has to know.
func (b *Backend) remembered(g *gateway) {
	now := known{g, g.bootID}
	b.mu.Lock()
	before := b.known
	if before.gateway == nil || len(b.signals) == 0 {
		b.known = now
	}
	b.mu.Unlock()
	if _, reason := now.since(before); reason != "" {
		b.signal(hint{reason: reason, strong: true})
	}
}
