package upnp

import (
	"context"
	"net/netip"

	"github.com/natforward/goforward/backends"
)

// ExternalAddr asks for the gateway's external address
// (GetExternalIPAddress). It is the zero Addr where the gateway names none:
// not connected, or it will not say, or says what no gateway can have.
func (c *Client) ExternalAddr(ctx context.Context) (netip.Addr, error) {
	var out struct{ NewExternalIPAddress string }
	if err := c.perform(ctx, "GetExternalIPAddress", nil, &out); err != nil {
		return netip.Addr{}, err
	}
	return backends.HostAddr(parseAddr(out.NewExternalIPAddress)), nil
}
