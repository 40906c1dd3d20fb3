package bench

import (
	"context"
	"errors"
	"time"

	"tailscale.com/net/netmon"
	"tailscale.com/net/portmapper"
	"tailscale.com/types/logger"
	"tailscale.com/util/eventbus"
)

// tailscale probes and then maps, as its client does. The bus and the network
// monitor are arguments of the constructor, which its client has long before:
// making them is not measured.
func tailscale(to target) (attempt, error) {
	bus := eventbus.New()
	monitor, err := netmon.New(bus, logger.Discard)
	if err != nil {
		return attempt{}, err
	}
	mapped := make(chan struct{}, 1)
	var c *portmapper.Client
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			c = portmapper.NewClient(portmapper.Config{
				EventBus: bus, NetMon: monitor, Logf: logger.Discard,
				OnChange: func() { mapped <- struct{}{} },
			})
			c.SetLocalPort(to.Port)
			found, err := c.Probe(ctx)
			if err != nil {
				return outcome{}, err
			}
			if !found.PCP && !found.PMP && !found.UPnP {
				return outcome{}, errors.New("the probe found nothing")
			}
			if external, ok := c.GetCachedMappingOrStartCreatingOne(); ok {
				return outcome{External: external}, nil
			}
			select {
			case <-mapped:
			case <-time.After(tailscaleCreates):
				return outcome{}, errors.New("no mapping within its own bound")
			case <-ctx.Done():
				return outcome{}, context.Cause(ctx)
			}
			external, ok := c.GetCachedMappingOrStartCreatingOne()
			if !ok {
				return outcome{}, errors.New("a change without a mapping")
			}
			return outcome{External: external}, nil
		},
		clean: func() { _ = c.Close() },
	}, nil
}

// tailscaleCreates is longer than it tries: that it has failed it does not tell.
const tailscaleCreates = 5500 * time.Millisecond
