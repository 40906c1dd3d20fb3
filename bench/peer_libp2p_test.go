package bench

import (
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/p2p/net/nat"
)

func libp2p(to target) (attempt, error) {
	var n *nat.NAT
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			var err error
			if n, err = nat.DiscoverNAT(ctx); err != nil {
				return outcome{}, err
			}
			if err := n.AddMapping(ctx, "udp", int(to.Port)); err != nil {
				return outcome{}, err
			}
			external, ok := n.GetMapping("udp", int(to.Port))
			if !ok {
				return outcome{}, errors.New("found a gateway, and got no mapping")
			}
			return outcome{External: external}, nil
		},
		clean: func() {
			_ = n.RemoveMapping(context.Background(), "udp", int(to.Port))
			_ = n.Close()
		},
	}, nil
}
