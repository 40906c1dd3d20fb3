package upnp

import (
	"context"
	"fmt"
)

// DeletePortMapping takes an entry away, whoever made it, where the gateway
// allows. Where there is none, the fault wraps backends.ErrInvalid (714).
func (c *Client) DeletePortMapping(ctx context.Context, key PortMappingKey) error {
	const action = "DeletePortMapping"
	in, err := key.args()
	if err != nil {
		return fmt.Errorf("upnp: %s: %w", action, err)
	}
	return c.perform(ctx, action, &in, nil)
}
