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

// renewPinhole prolongs a pinhole, or opens it again where the device has lost
// it.
func (b *Backend) renewPinhole(ctx context.Context, g *gateway, m backends.Mapping, r backends.Request) (backends.Mapping, error) {
	id, known := pinholeID(m.Token)
	if !known {
		return b.openPinhole(ctx, g, r)
	}
	m.Lifetime = pinholeLifetime(r)
	m.Description, m.Granted, m.Gateway = r.Description, time.Now(), g.addr()
	err := g.client.UpdatePinhole(ctx, id, m.Lifetime)
	switch {
	case err == nil:
		return m, nil
	case unlessAnswered(err) != nil:
		return backends.Mapping{}, err
	}
	if absent(err) {
		b.signal(hint{reason: "a pinhole is gone from the gateway's firewall", strong: true})
	}
	return b.openPinhole(ctx, g, r)
}

// closePinhole deletes a pinhole. One that is unknown is gone: by its number, or
// to a device that calls that an invalid argument.
func (b *Backend) closePinhole(ctx context.Context, g *gateway, m backends.Mapping) error {
	id, known := pinholeID(m.Token)
	if !known {
		return nil
	}
	err := g.client.DeletePinhole(ctx, id)
	if absent(err) || isFault(err, InvalidArgs) || isFault(err, FirewallDisabled) {
		return nil
	}
	return err
}

func isFault(err error, code FaultCode) bool {
	var fault *Fault
	return errors.As(err, &fault) && fault.Code == code
}
