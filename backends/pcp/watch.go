package pcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
)

// Watch calls notify after the server announced something, sent a mapping
// update that tells of another external port or of none, or showed by its epoch
// in an answer to anybody in the process that it lost its state (RFC 6887,
// sections 8.5 and 14), and then answered a question of ours. An announcement
// or update is believed no further than that: it is a change of kind Announced
// where the epoch fits.
//
// Where announcements cannot be listened for, Watch goes on without and logs
// why.
func (b *Backend) Watch(ctx context.Context, notify func(backends.Change)) error {
	return b.client.session.Watch(ctx, port5351.WatchHandler{
		WatchConfig:  port5351.WatchConfig{Announce: b.client.config.Announce, Unsolicited: b.mappingUpdate},
		ListenFailed: func(err error) { b.client.log.Warn("pcp: no announcements", "err", err) },
		Probe: func(ctx context.Context) error {
			err := b.client.Probe(ctx)
			if err == nil {
				b.refusals.clear()
			}
			return err
		},
		Notify: func(hint port5351.Hint) {
			c := backends.Change{Kind: backends.Announced, Reason: hint.Reason}
			if hint.Restarted {
				c.Kind, c.Since = backends.Restarted, hint.Since
			}
			notify(c)
		},
	})
}

// mappingUpdate judges a datagram that answers no request: a mapping mappingUpdate has the
// nonce of one of our mappings, and tells something new of it (RFC 6887, section
// 14.2). A copy of an answer does not.
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
		return fmt.Sprintf("the gateway says of a mapping: %v", errors.Unwrap(refusal))
	case r.Lifetime == 0:
		return "the gateway says that it took a mapping away"
	}
	return fmt.Sprintf("the gateway says that a mapping is now at %v", current)
}
