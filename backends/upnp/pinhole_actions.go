package upnp

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/natforward/goforward/backends"
)

// Pinhole is an opening of a gateway's IPv6 firewall.
type Pinhole struct {
	// Remote is the only peer admitted. The zero Addr: anyone; port 0: any port.
	Remote netip.AddrPort
	// Internal is the host and port that are let through to. Gateways want the
	// address that the request comes from.
	Internal netip.AddrPort
	Protocol backends.Protocol
	// Lease is sent in seconds, rounded up; 1 s to 86400 s by the standard.
	Lease time.Duration
}

// addPinholeArgs are the arguments of AddPinhole. Protocols are numbers here.
type addPinholeArgs struct {
	RemoteHost     string
	RemotePort     string
	InternalClient string
	InternalPort   string
	Protocol       string
	LeaseTime      string
}

func (p Pinhole) args() (*addPinholeArgs, error) {
	lease, err := pinholeLease(p.Lease)
	if err != nil {
		return nil, err
	}
	switch client := p.Internal.Addr(); {
	case p.Protocol == 0:
		return nil, fmt.Errorf("%w: no protocol", backends.ErrInvalid)
	case p.Internal.Port() == 0:
		return nil, fmt.Errorf("%w: internal port 0", backends.ErrInvalid)
	case !client.IsValid() || client.IsUnspecified():
		return nil, fmt.Errorf("%w: no internal address", backends.ErrInvalid)
	case client.Unmap().Is4():
		return nil, fmt.Errorf("%w: a pinhole is for IPv6, %v is not", backends.ErrUnsupported, client)
	}
	return &addPinholeArgs{
		RemoteHost: formatHost(p.Remote.Addr()), RemotePort: formatPort(p.Remote.Port()),
		InternalClient: formatHost(p.Internal.Addr()), InternalPort: formatPort(p.Internal.Port()),
		Protocol: strconv.Itoa(int(p.Protocol)), LeaseTime: lease,
	}, nil
}

// pinholeLease refuses what leaseSeconds has for permanent: no pinhole is.
func pinholeLease(d time.Duration) (string, error) {
	if d == 0 || d == backends.Forever {
		return "", fmt.Errorf("%w: a pinhole has an end", backends.ErrInvalid)
	}
	return leaseSeconds(d)
}

// AddPinhole opens the firewall and returns the pinhole's id. The same
// addresses, ports and protocol again extend it, under the same id.
func (c *Client) AddPinhole(ctx context.Context, p Pinhole) (id uint16, err error) {
	const action = "AddPinhole"
	in, err := p.args()
	if err != nil {
		return 0, fmt.Errorf("upnp: %s: %w", action, err)
	}
	var out struct{ UniqueID string }
	if err := c.perform(ctx, action, in, &out); err != nil {
		return 0, err
	}
	if id, err = parsePort("UniqueID", out.UniqueID); err != nil {
		return 0, fmt.Errorf("upnp: %s: %w", action, err)
	}
	return id, nil
}

// UpdatePinhole sets what is left of a pinhole's lease. Where there is none,
// the fault wraps backends.ErrInvalid (704).
func (c *Client) UpdatePinhole(ctx context.Context, id uint16, lease time.Duration) error {
	const action = "UpdatePinhole"
	seconds, err := pinholeLease(lease)
	if err != nil {
		return fmt.Errorf("upnp: %s: %w", action, err)
	}
	in := struct{ UniqueID, NewLeaseTime string }{formatPort(id), seconds}
	return c.perform(ctx, action, &in, nil)
}

// DeletePinhole closes a pinhole. Where there is none, the fault wraps
// backends.ErrInvalid (704).
func (c *Client) DeletePinhole(ctx context.Context, id uint16) error {
	in := struct{ UniqueID string }{formatPort(id)}
	return c.perform(ctx, "DeletePinhole", &in, nil)
}

// PinholeWorking asks whether traffic came through a pinhole
// (CheckPinholeWorking, which is optional). Fault 709 says that none came
// either way, which proves nothing.
func (c *Client) PinholeWorking(ctx context.Context, id uint16) (bool, error) {
	in := struct{ UniqueID string }{formatPort(id)}
	var out struct{ IsWorking string }
	if err := c.perform(ctx, "CheckPinholeWorking", &in, &out); err != nil {
		return false, err
	}
	return parseBool(out.IsWorking), nil
}
