package bench

import (
	"context"
	"net/netip"

	"github.com/natforward/goforward/forward"
)

func goforward(to target) (attempt, error) {
	return enabling(to, &forward.Config{Lifetime: lifetime})
}

func goforwardTold(to target) (attempt, error) {
	return enabling(to, &forward.Config{Lifetime: lifetime, Gateway: netip.AddrPortFrom(to.Gateway, 0), Test: forward.TestNetwork{SSDP: to.SSDP}})
}

func enabling(to target, config *forward.Config) (attempt, error) {
	var f *forward.Forwarder
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			var err error
			if f, err = forward.New(config); err != nil {
				return outcome{}, err
			}
			m, err := f.Enable(ctx, forward.UDP(to.Port))
			if err != nil {
				return outcome{}, err
			}
			return outcome{External: m.External().AddrPort, Way: m.Backend()}, nil
		},
		clean: func() { _ = f.Close() },
	}, nil
}
