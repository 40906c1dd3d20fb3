package upnp

import (
	"cmp"
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

const maxPinholeLifetime = 24 * time.Hour // WANIPv6FirewallControl:1, LeaseTime

// openPinhole opens the firewall. Nothing is translated: the external endpoint
// is this host's own. Where there is no firewall, it is open already.
func (b *Backend) openPinhole(ctx context.Context, g *gateway, r backends.Request) (backends.Mapping, error) {
	internal := g.withLocalAddr(r.Internal)
	lease := pinholeLifetime(r)
	m := backends.Mapping{
		Backend: Name, Gateway: g.addr(), Protocol: r.Protocol, Internal: internal, External: internal,
		Remote: r.Remote, Description: r.Description, Lifetime: lease, Granted: time.Now(),
	}
	id, err := g.client.AddPinhole(ctx, Pinhole{Remote: r.Remote, Internal: internal, Protocol: r.Protocol, Lease: lease})
	switch {
	case err == nil:
		m.Token = pinholeTokenOf(id)
	case isFault(err, FirewallDisabled):
	default:
		return backends.Mapping{}, err
	}
	return m, nil
}

func pinholeLifetime(r backends.Request) time.Duration {
	return min(roundUpToSecond(cmp.Or(r.Lifetime, DefaultLifetime)), maxPinholeLifetime)
}

// renewPinhole opens the pinhole again, which prolongs the one that there is
// (WANIPv6FirewallControl:1, AddPinhole). Its number is not to be relied on: after
// a restart the device numbers anew, and UpdatePinhole would prolong another's.
func (b *Backend) renewPinhole(ctx context.Context, g *gateway, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	renewed, err := b.openPinhole(ctx, g, r)
	if err == nil && !m.Token.IsZero() && renewed.Token != m.Token {
		b.sendHint(hint{reason: "a pinhole is gone from the gateway's firewall", strong: true})
	}
	return renewed, err
}

// closePinhole deletes a pinhole, by the number that it has now: asked for once
// more, briefly, the device tells it. Where there is no firewall there is none.
func (b *Backend) closePinhole(ctx context.Context, g *gateway, m backends.Mapping) error {
	if m.Token.IsZero() {
		return nil
	}
	id, err := g.client.AddPinhole(ctx, Pinhole{
		Remote: m.Remote, Internal: g.withLocalAddr(m.Internal), Protocol: m.Protocol, Lease: time.Minute,
	})
	if err == nil {
		err = g.client.DeletePinhole(ctx, id)
	}
	if isNotFound(err) || isFault(err, InvalidArgs) || isFault(err, FirewallDisabled) {
		return nil
	}
	return err
}
