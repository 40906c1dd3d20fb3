package gatewaytest

import "github.com/natforward/goforward/forward"

// Config returns a config for a Forwarder that uses the gateway, also its announcements and
// UPnP devices. Each call returns another one, whose other fields are the caller's to set.
func (g *Gateway) Config() *forward.Config {
	return &forward.Config{
		Gateway: g.Addr(),
		Test:    forward.TestNetwork{Announce: g.AnnounceAddr(), SSDP: g.SSDP(), Notify: g.NotifyAddr()},
	}
}
