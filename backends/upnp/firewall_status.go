package upnp

import "context"

// FirewallStatus is the state of a gateway's IPv6 firewall.
type FirewallStatus struct {
	// Enabled is whether there is a firewall; without one every port is open.
	Enabled bool
	// InboundPinholeAllowed is whether hosts may open it.
	InboundPinholeAllowed bool
}

// FirewallStatus asks for the state of the IPv6 firewall (GetFirewallStatus of
// WANIPv6FirewallControl:1).
func (c *Client) FirewallStatus(ctx context.Context) (FirewallStatus, error) {
	var out struct{ FirewallEnabled, InboundPinholeAllowed string }
	if err := c.perform(ctx, "GetFirewallStatus", nil, &out); err != nil {
		return FirewallStatus{}, err
	}
	return FirewallStatus{
		Enabled:               parseBool(out.FirewallEnabled),
		InboundPinholeAllowed: parseBool(out.InboundPinholeAllowed),
	}, nil
}
