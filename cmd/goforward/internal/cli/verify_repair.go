package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
)

// repair deletes a mapping and maps it again, with the same ports.
func (a *app) repair(ctx context.Context, c *portCheck) error {
	if a.repairMapping != nil {
		return a.repairMapping(ctx, c)
	}
	if c.held == nil {
		return a.repairEntry(ctx, c)
	}
	if err := c.held.Shutdown(ctx); err != nil {
		return err
	}
	m, err := c.enable(ctx)
	if err != nil {
		return err
	}
	c.held = m
	return nil
}

// repairEntry deletes an entry of the gateway's table and adds it again. A permanent entry stays
// permanent. If another program of this user keeps the entry alive, repairEntry changes nothing.
func (a *app) repairEntry(ctx context.Context, c *portCheck) error {
	return a.withBackends(ctx, query{
		timeout: listTimeout, sufficient: isLister,
		do: func(ctx context.Context, result *probeResult) error {
			end, err := beginUnmap(result.gateway, c.mapping.Protocol, c.mapping.Internal, false)
			if err != nil {
				return err
			}
			defer end()
			for _, b := range result.available {
				if l, ok := b.Backend.(backends.Lister); ok {
					return a.replaceEntry(ctx, c, b, l)
				}
			}
			return fmt.Errorf("%w: the gateway does not list its mappings any more", backends.ErrUnsupported)
		},
	})
}

func (a *app) replaceEntry(ctx context.Context, c *portCheck, b availableBackend, l backends.Lister) error {
	if c.mapping.Lifetime == backends.Forever && !grantsPermanent(ctx, b) {
		return fmt.Errorf("%w: the entry stays: it is permanent, and the gateway would add it only for a limited time", backends.ErrUnsupported)
	}
	for e, err := range l.List(ctx) {
		if err != nil {
			return err
		}
		m := e.Mapping
		if m.Protocol != c.mapping.Protocol || m.External.Port() != c.mapping.External.Port() || m.Remote != c.mapping.Remote {
			continue
		}
		if m.Internal != c.mapping.Internal {
			return fmt.Errorf("%w: %s has the port now", backends.ErrConflict, endpointText(m.Internal))
		}
		if err := b.Unmap(ctx, m); err != nil {
			return err
		}
		break
	}
	again, err := b.Map(ctx, backends.Request{
		Protocol: c.mapping.Protocol, Internal: c.mapping.Internal, Remote: c.mapping.Remote, Exact: true,
		External: netip.AddrPortFrom(netip.Addr{}, c.mapping.External.Port()),
		Lifetime: c.mapping.Lifetime, Description: c.mapping.Description,
	})
	if err != nil {
		return err
	}
	if c.mapping.Lifetime == backends.Forever && again.Lifetime != backends.Forever {
		a.failuref("%s was permanent, and is now mapped only %s\n", c.name(), expiryText(again.Expires()))
	}
	return nil
}

// grantsPermanent reports whether a device can grant permanent mappings. In version 2 of the
// service, the longest lease is a week (WANIPConnection:2, section 2.3.16).
func grantsPermanent(ctx context.Context, b availableBackend) bool {
	device, is := b.Backend.(*upnp.Backend)
	if !is {
		return true
	}
	all, _ := device.Gateways(ctx) // after an error, the device is not among them
	for _, g := range all {
		if g.Device.URL == device.DeviceURL() {
			return strings.HasSuffix(g.Service.Type, ":1")
		}
	}
	return false
}
