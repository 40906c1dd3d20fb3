package natpmp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/internal/port5351"
)

// Watch calls notify after the gateway announced something, or its clock went
// back in an answer to anybody in the process (RFC 6886, sections 3.6 and
// 3.7), and then answered a question of ours. An announcement is believed no
// further than that: one from a gateway whose clock did not go back is a
// change of kind Announced.
//
// Where announcements cannot be listened for, Watch goes on with the clock
// alone and logs why.
func (b *Backend) Watch(ctx context.Context, notify func(backends.Change)) error {
	var previous, current netip.Addr
	return b.client.session.Watch(ctx, port5351.WatchHandler{
		WatchConfig:  port5351.WatchConfig{Announce: b.client.config.Announce},
		ListenFailed: func(err error) { b.client.log.Warn("natpmp: no announcements", "err", err) },
		Probe: func(ctx context.Context) error {
			previous, current = b.lastExternal(), netip.Addr{}
			r, err := b.client.externalAddr(ctx, false)
			switch {
			case err == nil:
				current = r.Addr
				b.recordExternal(r.Addr, time.Now())
			case !errors.Is(err, backends.ErrNoReply):
				b.expireExternal() // up, but with nothing to tell: mappings say what it means
			}
			return err
		},
		Notify: func(hint port5351.Hint) { notify(change(hint, previous, current)) },
	})
}

// change is what to make of a signal, after an answer with the address now.
func change(hint port5351.Hint, previous, current netip.Addr) backends.Change {
	c := backends.Change{Kind: backends.Announced, External: sanitizeAddr(current), Reason: hint.Reason}
	addrChanged := previous.IsValid() && current.IsValid() && current != previous
	switch {
	case hint.Restarted && addrChanged: // it may have lost nothing: some start their clock anew with each address
		c.Kind = backends.Restarted
	case hint.Restarted:
		c.Kind, c.Since = backends.Restarted, hint.Since
	case addrChanged:
		c.Kind = backends.AddressChanged
		c.Reason = fmt.Sprintf("the external address was %v and is %v", previous, current)
	}
	return c
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
