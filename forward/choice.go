package forward

import "net/netip"

// Choice records which protocol a gateway supported when it was used last. With it, the next
// run of a program finds the gateway sooner. A Choice is never trusted: the gateway is asked
// again, and if it does not reply at once, all protocols are probed.
type Choice struct {
	// Gateway is the address of the gateway. If its port is 0, it is the port of the standard.
	Gateway netip.AddrPort `json:"gateway"`
	// Interface is the interface toward the gateway, or empty if it is unknown.
	Interface string `json:"interface,omitempty"`
	// Protocol is the name of the protocol: "natpmp", "pcp" or "upnp".
	Protocol string `json:"protocol"`
	// URL is the URL of the UPnP root description, if Protocol is "upnp".
	URL string `json:"url,omitempty"`
}
