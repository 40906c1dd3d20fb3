package natpmp

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
)

// Watch calls notify when the gateway may have lost its mappings: after an
// announcement, or if the epoch went back in a response to any request of this
// process (RFC 6886, sections 3.6 and 3.7). Before it calls notify, Watch sends a
// request to the gateway and waits for the reply. If the reply has another external
// address, the change is of kind AddressChanged, even if the epoch went back too. An
// announcement alone is a change of kind Announced.
//
// If Watch cannot listen for announcements, it logs the error and only checks the
// epoch.
func (b *Backend) Watch(ctx context.Context, notify func(backends.Change)) error {
	b.mu.Lock()
	b.previous = netip.Addr{} // a change before Watch is no change for its caller
	b.mu.Unlock()
	return b.client.session.Watch(ctx, port5351.WatchHandler{
		WatchConfig:  port5351.WatchConfig{Announce: b.client.config.Announce},
		ListenFailed: func(err error) { b.client.log.Warn("natpmp: cannot listen for announcements", "err", err) },
		Probe: func(ctx context.Context) error {
			r, err := b.client.ExternalAddr(ctx)
			switch {
			case err == nil:
				b.recordExternal(r.Addr)
			case !errors.Is(err, backends.ErrNoReply):
				b.expireExternal() // the gateway is up, but reports no address: the renewals will show whether the mappings are active
			}
			return err
		},
		Notify: func(hint port5351.Hint) { notify(hint.Change(b.takeChange())) },
	})
}

func (b *Backend) lastExternal() netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.external
}

func (b *Backend) expireExternal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.externalTime = time.Time{}
}
