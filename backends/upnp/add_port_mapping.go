package upnp

import (
	"context"
	"fmt"
)

// AddPortMapping makes an entry, or refreshes one of the same host. An entry
// of another host conflicts (718), and with some gateways one of the same host
// does.
func (c *Client) AddPortMapping(ctx context.Context, m PortMapping) error {
	const action = "AddPortMapping"
	in, err := m.args()
	if err != nil {
		return fmt.Errorf("upnp: %s: %w", action, err)
	}
	return c.perform(ctx, action, in, nil)
}

// AddAnyPortMapping makes an entry and returns its external port, which is
// another than the wish where that is taken. WANIPConnection:2 has it.
func (c *Client) AddAnyPortMapping(ctx context.Context, m PortMapping) (uint16, error) {
	const action = "AddAnyPortMapping"
	in, err := m.args()
	if err != nil {
		return 0, fmt.Errorf("upnp: %s: %w", action, err)
	}
	var out struct{ NewReservedPort string }
	if err := c.perform(ctx, action, in, &out); err != nil {
		return 0, err
	}
	port, err := parsePort("NewReservedPort", out.NewReservedPort)
	if err == nil && port == 0 {
		err = malformed("port 0 reserved")
	}
	if err != nil {
		return 0, fmt.Errorf("upnp: %s: %w", action, err)
	}
	return port, nil
}
