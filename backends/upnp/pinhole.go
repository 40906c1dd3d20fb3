package upnp

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/natforward/goforward/backends"
)

const longestPinhole = 24 * time.Hour // WANIPv6FirewallControl:1, LeaseTime

// openPinhole opens the firewall. Nothing is translated: the external endpoint
// is this host's own. Where there is no firewall, it is open already.
func (b *Backend) openPinhole(ctx context.Context, g *gateway, r backends.Request) (backends.Mapping, error) {
	internal := g.internal(r.Internal)
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
	return min(wholeSeconds(cmp.Or(r.Lifetime, DefaultLifetime)), longestPinhole)
}

// renewPinhole opens the pinhole again, which prolongs the one that there is
// (WANIPv6FirewallControl:1, AddPinhole). Its number is not to be relied on: after
// a restart the device numbers anew, and UpdatePinhole would prolong another's.
func (b *Backend) renewPinhole(ctx context.Context, g *gateway, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	again, err := b.openPinhole(ctx, g, r)
	if err == nil && !m.Token.IsZero() && again.Token != m.Token {
		b.signal(hint{reason: "a pinhole is gone from the gateway's firewall", strong: true})
	}
	return again, err
}

// closePinhole deletes a pinhole, by the number that it has now: asked for once
// more, briefly, the device tells it. Where there is no firewall there is none.
func (b *Backend) closePinhole(ctx context.Context, g *gateway, m backends.Mapping) error {
	if m.Token.IsZero() {
		return nil
	}
	id, err := g.client.AddPinhole(ctx, Pinhole{
		Remote: m.Remote, Internal: g.internal(m.Internal), Protocol: m.Protocol, Lease: time.Minute,
	})
	if err == nil {
		err = g.client.DeletePinhole(ctx, id)
	}
	if absent(err) || isFault(err, InvalidArgs) || isFault(err, FirewallDisabled) {
		return nil
	}
	return err
}

func isFault(err error, code FaultCode) bool {
	var fault *Fault
	return errors.As(err, &fault) && fault.Code == code
}
