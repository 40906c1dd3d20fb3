package upnp

import (
	"context"
	"strings"
	"time"
)

// Status is the state of a gateway's connection to the internet.
type Status struct {
	// Connection is the state's name: Connected, Disconnected, Connecting,
	// Unconfigured and others.
	Connection string
	// LastError is why the connection failed last, ERROR_NONE or the vendor's.
	LastError string
	// Uptime is how long the connection stands; 0 where the gateway will not say.
	Uptime time.Duration
}

// Connected reports whether the connection stands, as far as the gateway knows.
func (s Status) Connected() bool {
	return strings.EqualFold(s.Connection, "Connected") || strings.EqualFold(s.Connection, "Up")
}

// Status asks for the state of the connection (GetStatusInfo).
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out struct {
		NewConnectionStatus    string
		NewLastConnectionError string
		NewUptime              string
	}
	if err := c.perform(ctx, "GetStatusInfo", nil, &out); err != nil {
		return Status{}, err
	}
	return Status{
		Connection: printable(out.NewConnectionStatus),
		LastError:  printable(out.NewLastConnectionError),
		Uptime:     parseLease(out.NewUptime),
	}, nil
}
