package upnp

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover/ssdp"
)

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
