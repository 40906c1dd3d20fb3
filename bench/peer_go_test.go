package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/nat"
	"github.com/huin/goupnp/dcps/internetgateway2"
	natpmp "github.com/jackpal/go-nat-pmp"
)

func goNATPMP(to target) (attempt, error) {
	var c *natpmp.Client
	return attempt{
		run: func(context.Context) (outcome, error) {
			c = natpmp.NewClient(to.Gateway.AsSlice())
			addr, err := c.GetExternalAddress()
			if err != nil {
				return outcome{}, err
			}
			m, err := c.AddPortMapping("udp", int(to.Port), int(to.Port), int(lifetime.Seconds()))
			if err != nil {
				return outcome{}, err
			}
			return outcome{External: netip.AddrPortFrom(netip.AddrFrom4(addr.ExternalIPAddress), m.MappedExternalPort)}, nil
		},
		clean: func() { _, _ = c.AddPortMapping("udp", int(to.Port), 0, 0) },
	}, nil
}

// goEthereum is what a node does: it maps, and asks for the address besides.
func goEthereum(to target) (attempt, error) {
	var gw nat.Interface
	return attempt{
		run: func(context.Context) (outcome, error) {
			gw = nat.Any()
			port, err := gw.AddMapping("UDP", int(to.Port), int(to.Port), "bench", lifetime)
			if err != nil {
				return outcome{}, err
			}
			ip, err := gw.ExternalIP()
			if err != nil {
				return outcome{}, err
			}
			addr, _ := netip.AddrFromSlice(ip)
			return outcome{External: netip.AddrPortFrom(addr.Unmap(), port), Way: gw.String()}, nil
		},
		clean: func() { _ = gw.DeleteMapping("UDP", int(to.Port), int(to.Port)) },
	}, nil
}

// connection is what goupnp's clients of either version have in common.
type connection interface {
	GetExternalIPAddressCtx(context.Context) (string, error)
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, protocol string, internal uint16, client string, enabled bool, description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, protocol string) error
	LocalAddr() net.IP
}

// goUPnP is what goupnp's guide shows: all kinds of services are searched at once,
// and the first that there is one of is taken.
func goUPnP(to target) (attempt, error) {
	var c connection
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			var err error
			if c, err = pickConnection(ctx); err != nil {
				return outcome{}, err
			}
			text, err := c.GetExternalIPAddressCtx(ctx)
			if err != nil {
				return outcome{}, err
			}
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return outcome{}, err
			}
			err = c.AddPortMappingCtx(ctx, "", to.Port, "UDP", to.Port, c.LocalAddr().String(), true, "bench", uint32(lifetime.Seconds()))
			return outcome{External: netip.AddrPortFrom(addr, to.Port)}, err
		},
		clean: func() { _ = c.DeletePortMappingCtx(context.Background(), "", to.Port, "UDP") },
	}, nil
}

func pickConnection(ctx context.Context) (connection, error) {
	var (
		wg   sync.WaitGroup
		ip1  []*internetgateway2.WANIPConnection1
		ip2  []*internetgateway2.WANIPConnection2
		errs [2]error
	)
	wg.Go(func() { ip1, _, errs[0] = internetgateway2.NewWANIPConnection1ClientsCtx(ctx) })
	wg.Go(func() { ip2, _, errs[1] = internetgateway2.NewWANIPConnection2ClientsCtx(ctx) })
	wg.Wait()
	switch {
	case len(ip2) > 0:
		return ip2[0], nil
	case len(ip1) > 0:
		return ip1[0], nil
	}
	return nil, fmt.Errorf("no services found: %w", errors.Join(errs[:]...))
}

// lifetime is what everybody asks for.
const lifetime = time.Hour
