package gatewaytest

import (
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
)

// Entry is a row of the gateway's table.
type Entry struct {
	Protocol backends.Protocol
	// Internal is where inbound traffic goes. Port 0 is all ports, and Protocol 0
	// with it all protocols; then External has port 0 too.
	Internal netip.AddrPort
	// External is the endpoint that outside hosts use. Of a pinhole in the IPv6
	// firewall it is Internal.
	External netip.AddrPort
	// Remaining is the lifetime left on the gateway's clock, or
	// backends.Forever. In AddMapping, zero is Forever too.
	Remaining time.Duration
	// Service is the name of the protocol that made it ("natpmp", "pcp", "upnp"), or of what
	// else did. In AddMapping, empty is "admin".
	Service string
	// Disabled entries are listed and forward nothing.
	Disabled bool
	// Static entries cannot be deleted by protocol and survive Restart.
	Static bool
	// Description is what the protocol carried, if it can.
	Description string
	// Filters admit only the outside hosts that one of them matches. Without any, all are
	// admitted.
	Filters []pcp.Filter
	// Remote is the only outside endpoint of an entry that PCP's PEER made, as an
	// outgoing packet would. The zero value: not such an entry.
	Remote netip.AddrPort
}

// admits reports whether the outside host may use the entry.
func (e Entry) admits(from netip.AddrPort) bool {
	if e.Disabled {
		return false
	}
	if e.Remote.IsValid() {
		return from == e.Remote
	}
	for _, f := range e.Filters {
		if f.Prefix.Contains(from.Addr()) && (f.Port == 0 || f.Port == from.Port()) {
			return true
		}
	}
	return len(e.Filters) == 0
}
