package gatewaytest

import (
	"context"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// The gaps between the packets of an announcement double from the first to the
// last (RFC 6886, section 3.2.1; RFC 6887, section 14.1).
const (
	firstGap = 250 * time.Millisecond
	lastGap  = 64 * time.Second
)

// mostAlive is how often ssdp:alive is sent, since datagrams get lost (UPnP Device
// Architecture 1.1, section 1.2.2).
const mostAlive = 3

// Announce tells the hosts to look again, as Restart and SetExternal do. The
// first packet is sent before it returns; the series ends with the next
// announcement. Nothing is sent while down, or without Config.Announce,
// Config.Announce6 and Config.Notify, where ssdp:alive goes for each device and
// service, three times at most. Start does not announce.
func (g *Gateway) Announce() {
	if g.config.Notify.IsValid() {
		g.series(&g.notifying, min(g.config.Quirks.AnnounceCount, mostAlive), func() { g.upnp.notify("ssdp:alive") })
	}
	if g.config.Announce.IsValid() || g.config.Announce6.IsValid() {
		g.series(&g.announcing, g.config.Quirks.AnnounceCount, g.announceOnce)
	}
}

// series runs a round, and the others later. It ends the series that current
// is of, and current then is of this one.
func (g *Gateway) series(current *context.CancelFunc, count int, round func()) {
	ctx, cancel := context.WithCancel(context.Background())
	g.mu.Lock()
	if *current != nil {
		(*current)()
	}
	*current = cancel
	g.mu.Unlock()

	round()
	if count == 1 {
		return
	}
	g.spawn(func() {
		defer cancel()
		gap := firstGap
		for range count - 1 {
			select {
			case <-time.After(gap):
			case <-ctx.Done():
				return
			case <-g.done:
				return
			}
			if ctx.Err() != nil { // both were ready
				return
			}
			round()
			gap = min(2*gap, lastGap)
		}
	})
}

// announceOnce sends one round, unless the gateway is down.
func (g *Gateway) announceOnce() {
	hint, _ := pcp.AnnounceResponse{Epoch: g.Epoch()}.MarshalBinary()
	if to := g.config.Announce; to.IsValid() {
		if g.config.Quirks.AnnounceAs != quirks.AnnouncePCP {
			g.announceTo(to, g.natpmp.externalAddr(int(natpmp.Success)))
		}
		if g.config.Quirks.AnnounceAs != quirks.AnnounceNATPMP {
			g.announceTo(to, hint)
		}
	}
	if to := g.config.Announce6; to.IsValid() {
		g.announceTo(to, hint)
	}
}

func (g *Gateway) announceTo(to netip.AddrPort, b []byte) {
	g.send(to, b, func(s *Stats) { s.Announcements++ })
}
