package gatewaytest

import (
	"context"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// The intervals between the packets of an announcement double, from firstInterval up to
// maxInterval (RFC 6886, section 3.2.1; RFC 6887, section 14.1).
const (
	firstInterval = 250 * time.Millisecond
	maxInterval   = 64 * time.Second
)

// maxAliveRounds is the maximum number of times that ssdp:alive is sent. It is sent
// repeatedly because datagrams can be lost (UPnP Device Architecture 1.1, section
// 1.2.2).
const maxAliveRounds = 3

// Announce informs the hosts that the gateway may have changed. Restart and SetExternal
// call it. The first packet is sent before Announce returns. The next announcement ends
// the series.
//
// NAT-PMP and PCP send their announcements to Config.Announce and Config.Announce6. UPnP
// notifies Config.Notify with ssdp:alive for each device and service, at most three
// times. A protocol that the gateway does not support, or that is down, sends nothing.
// Start does not announce.
func (g *Gateway) Announce() {
	if g.supports(serviceUPnP) && hasPort(g.config.Notify) {
		g.sendSeries(&g.cancelNotify, min(g.config.Quirks.AnnounceCount, maxAliveRounds), func() { g.upnp.notify("ssdp:alive") })
	}
	if hasPort(g.config.Announce) || hasPort(g.config.Announce6) {
		g.sendSeries(&g.cancelAnnounce, g.config.Quirks.AnnounceCount, g.announceOnce)
	}
}

// sendSeries calls round count times: once before it returns, and then in the background
// with growing intervals. It ends the previous series by *current, and stores the cancel
// function of the new series in *current.
func (g *Gateway) sendSeries(current *context.CancelFunc, count int, round func()) {
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
		interval := firstInterval
		for range count - 1 {
			select {
			case <-time.After(interval):
			case <-ctx.Done():
				return
			case <-g.done:
				return
			}
			if ctx.Err() != nil { // both channels were ready
				return
			}
			round()
			interval = min(2*interval, maxInterval)
		}
	})
}

// announceOnce sends one round of announcements, unless the gateway is down.
func (g *Gateway) announceOnce() {
	pcpAnnouncement, _ := pcp.AnnounceResponse{Epoch: g.epoch()}.MarshalBinary()
	form := g.config.Quirks.AnnounceAs
	switch {
	case !g.supports(serviceNATPMP) && !g.supports(servicePCP):
		return
	case !g.supports(serviceNATPMP) && form == quirks.AnnounceNATPMP:
		form = quirks.AnnouncePCP
	}
	if to := g.config.Announce; hasPort(to) {
		if form != quirks.AnnouncePCP {
			g.announceTo(to, g.natpmp.externalAddrResponse(int(natpmp.Success)))
		}
		if form != quirks.AnnounceNATPMP {
			g.announceTo(to, pcpAnnouncement)
		}
	}
	if to := g.config.Announce6; hasPort(to) {
		g.announceTo(to, pcpAnnouncement)
	}
}

// hasPort reports whether packets can be sent to an address. In a configuration, port 0
// means that nothing is to be sent.
func hasPort(at netip.AddrPort) bool { return at.IsValid() && at.Port() != 0 }

// announceTo sends one announcement packet and counts it.
func (g *Gateway) announceTo(to netip.AddrPort, b []byte) {
	g.send(to, b, func(s *Stats) { s.Announcements++ })
}
