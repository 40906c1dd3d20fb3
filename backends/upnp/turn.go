package upnp

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/internal/ctxsync"
)

// The queues of the process. hosts has those for the addresses and ports that actions
// are sent to: small devices serve one request at a time. tables has those for the
// tables of devices.
var (
	hosts  ctxsync.Queues[netip.AddrPort]
	tables ctxsync.Queues[netip.Addr]
)

// takeTurn waits for a turn in a queue, and returns what ends it.
func takeTurn[K comparable](ctx context.Context, q *ctxsync.Queues[K], key K) (end func(), err error) {
	ready, leave := q.Enter(ctx, key)
	select {
	case <-ready:
		return leave, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// takeTable waits until no other call in the process looks at the device's table in
// order to change it: two calls that both look and then both add would overwrite each
// other's entries.
func (g *gateway) takeTable(ctx context.Context) (end func(), err error) {
	end, err = takeTurn(ctx, &tables, g.Device.Host)
	if err != nil {
		return nil, fmt.Errorf("upnp: %w", err)
	}
	return end, nil
}
