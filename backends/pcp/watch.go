package pcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
)

// Watch calls notify when the server may have lost its mappings. There are three
// signs: an announcement; a mapping update with an error, without a lifetime or with
// another external endpoint; and an epoch that shows a loss of state, in a response
// to any request of this process (RFC 6887, sections 8.5 and 14). Before it calls notify, Watch sends a
// request to the server and waits for the reply. An announcement or update from a
// server whose epoch is consistent is a change of kind Announced. PCP has no request
// for the external address, so another address is not a change of kind AddressChanged:
// the next renewal reports it.
//
// If Watch cannot listen for announcements, it logs the error and relies on the
// other two signs.
func (b *Backend) Watch(ctx context.Context, notify func(backends.Change)) error {
	return b.client.session.Watch(ctx, port5351.WatchHandler{
		WatchConfig:  port5351.WatchConfig{Announce: b.client.config.Announce, Unsolicited: b.mappingUpdate},
		ListenFailed: func(err error) { b.client.log.Warn("pcp: cannot listen for announcements", "err", err) },
		Probe: func(ctx context.Context) error {
			err := b.client.Probe(ctx)
			if err != nil {
				return err
			}
			b.refusals.clear()
			b.noOptions.Store(false)
			return nil
		},
		Notify: func(hint port5351.Hint) { notify(hint.Change(netip.Addr{}, netip.Addr{})) },
	})
}

// mappingUpdate returns the reason for a hint if a datagram that answers no request
// is a mapping update: it has the nonce of a mapping of this Backend, and it
// differs from the last response (RFC 6887, section 14.2). A duplicate of a
// response is not an update.
func (b *Backend) mappingUpdate(datagram []byte) string {
	r, err := ParseMapResponse(datagram)
	if err != nil {
		return ""
	}
	b.mu.Lock()
	external, found := b.granted[r.Nonce]
	b.mu.Unlock()
	current := netip.AddrPortFrom(b.sanitizeAddr(r.External), r.ExternalPort)
	switch {
	case !found || r.Result == Success && r.Lifetime > 0 && current == external:
		return ""
	case r.Result != Success:
		refusal := &ResultError{Op: OpMap, Code: r.Result}
		return fmt.Sprintf("the gateway reports an error for a mapping: %v", errors.Unwrap(refusal))
	case r.Lifetime == 0:
		return "the gateway reports that it deleted a mapping"
	}
	return fmt.Sprintf("the gateway reports that a mapping is now at %v", current)
}
