package upnp

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lenient"
)

// Pinhole is an opening in a gateway's IPv6 firewall.
type Pinhole struct {
	// Remote is the only peer that may use the pinhole. The zero Addr means any
	// address, port 0 any port.
	Remote netip.AddrPort
	// Internal is the address and port to which the firewall lets traffic
	// through. Gateways require the address from which the request is sent.
	Internal netip.AddrPort
	Protocol backends.Protocol
	// Lease is sent in seconds, rounded up. The standard permits 1 s to 86400
	// s.
	Lease time.Duration
}

// addPinholeArgs are the arguments of AddPinhole. Here the protocol is a
// number.
type addPinholeArgs struct {
	RemoteHost, RemotePort, InternalClient, InternalPort, Protocol, LeaseTime string
}

func (p Pinhole) args() (addPinholeArgs, error) {
	lease, err := pinholeLease(p.Lease)
	if err == nil && p.Protocol == 0 {
		err = fmt.Errorf("%w: no protocol", backends.ErrInvalid)
	}
	return addPinholeArgs{
		RemoteHost: formatHost(p.Remote.Addr()), RemotePort: formatPort(p.Remote.Port()),
		InternalClient: formatHost(p.Internal.Addr()), InternalPort: formatPort(p.Internal.Port()),
		Protocol: strconv.Itoa(int(p.Protocol)), LeaseTime: lease,
	}, cmp.Or(err, checkInternal(p.Internal, false))
}

// pinholeLease rejects the values that mean a permanent lease in leaseSeconds,
// because a pinhole cannot be permanent.
func pinholeLease(d time.Duration) (string, error) {
	if d == 0 || d == backends.Forever {
		return "", fmt.Errorf("%w: a pinhole cannot be permanent", backends.ErrInvalid)
	}
	return leaseSeconds(d)
}

// AddPinhole opens the firewall and returns the id of the pinhole. Repeating
// the call with the same addresses, ports and protocol extends the pinhole
// under the same id.
func (c *Client) AddPinhole(ctx context.Context, p Pinhole) (id uint16, err error) {
	in, err := p.args()
	return call(ctx, c, "AddPinhole", in, err, func(out *lenient.Element) (uint16, error) {
		return parsePort(out, "UniqueID")
	})
}

// UpdatePinhole sets the remaining lease of a pinhole. If there is no such
// pinhole, the fault wraps backends.ErrInvalid (704).
func (c *Client) UpdatePinhole(ctx context.Context, id uint16, lease time.Duration) error {
	seconds, err := pinholeLease(lease)
	in := struct{ UniqueID, NewLeaseTime string }{formatPort(id), seconds}
	_, err = call(ctx, c, "UpdatePinhole", in, err, noOutput)
	return err
}

// DeletePinhole closes a pinhole. If there is no such pinhole, the fault wraps
// backends.ErrInvalid (704).
func (c *Client) DeletePinhole(ctx context.Context, id uint16) error {
	_, err := call(ctx, c, "DeletePinhole", struct{ UniqueID string }{formatPort(id)}, nil, noOutput)
	return err
}

// PinholeWorking reports whether traffic has passed through a pinhole
// (CheckPinholeWorking, which is optional). Fault 709 means that the gateway
// has seen no traffic in either direction; the pinhole may work nevertheless.
func (c *Client) PinholeWorking(ctx context.Context, id uint16) (bool, error) {
	in := struct{ UniqueID string }{formatPort(id)}
	return call(ctx, c, "CheckPinholeWorking", in, nil, func(out *lenient.Element) (bool, error) {
		return parseBool(out.Value("IsWorking"), false), nil
	})
}

// FirewallStatus is the state of a gateway's IPv6 firewall.
type FirewallStatus struct {
	// Enabled reports whether the firewall is active. If it is not, every port
	// is open.
	Enabled bool
	// InboundPinholeAllowed reports whether hosts may open pinholes.
	InboundPinholeAllowed bool
}

// FirewallStatus requests the state of the IPv6 firewall (GetFirewallStatus of
// WANIPv6FirewallControl:1).
func (c *Client) FirewallStatus(ctx context.Context) (FirewallStatus, error) {
	return call(ctx, c, "GetFirewallStatus", nil, nil, func(out *lenient.Element) (FirewallStatus, error) {
		return FirewallStatus{
			Enabled:               parseBool(out.Value("FirewallEnabled"), false),
			InboundPinholeAllowed: parseBool(out.Value("InboundPinholeAllowed"), false),
		}, nil
	})
}

const maxPinholeLifetime = 24 * time.Hour // WANIPv6FirewallControl:1, LeaseTime

// openPinhole opens the firewall. Nothing is translated, so the external
// endpoint is the internal one. If the firewall is disabled, the port is
// already open, and the mapping has no Token.
func (b *Backend) openPinhole(ctx context.Context, g *gateway, r backends.Request) (backends.Mapping, error) {
	internal := g.withLocalAddr(r.Internal)
	lease := pinholeLifetime(r)
	m := backends.Mapping{
		Backend: Name, Gateway: g.client.addr(), Protocol: r.Protocol, Internal: internal, External: internal,
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

// renewPinhole opens the pinhole again, which extends the existing one
// (WANIPv6FirewallControl:1, AddPinhole). It does not use the id of the
// pinhole: after a restart, the device assigns new ids, and UpdatePinhole could
// extend the pinhole of another host.
func (b *Backend) renewPinhole(ctx context.Context, g *gateway, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	renewed, err := b.openPinhole(ctx, g, r)
	if err == nil && !m.Token.IsZero() && renewed.Token != m.Token {
		b.sendHint(hint{reason: "a pinhole is missing from the gateway's firewall", strong: true})
	}
	return renewed, err
}

// closePinhole deletes a pinhole. The id of the pinhole may have changed, so
// closePinhole first opens the pinhole again with a short lease to learn its
// current id. If the firewall is disabled, there is nothing to delete.
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
