package cli

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

// unmapTime bounds the deletion when map --hold ends, unless --timeout does.
const unmapTime = 5 * time.Second

// hold keeps a mapping alive until the context ends, and takes it away. The
// first attempt has to succeed: who mistyped should not wait for ever.
func (a *app) hold(ctx context.Context, w *wish) error {
	h := &holding{app: a, wish: w, shown: make(chan struct{})}
	config := a.config()
	config.OnEvent, config.NonceKey = h.onEvent, a.nonceKey()
	f, err := forward.New(config)
	if err != nil {
		return err
	}
	if _, err := f.Enable(ctx, w.options()...); err != nil {
		_ = f.Close()
		return mapFailure(ctx, err)
	}
	<-h.shown // its event is on the way
	select {
	case <-ctx.Done():
	case <-a.stdout.broken: // nobody reads it any more
	}
	return h.end(context.WithoutCancel(ctx), f)
}

// holding tells what happens to a mapping.
type holding struct {
	app   *app
	wish  *wish
	shown chan struct{} // closed after the first event

	mu   sync.Mutex
	last []backends.Mapping // what was last granted
}

func (h *holding) onEvent(e forward.Event) {
	h.mu.Lock()
	first := h.last == nil
	if len(e.State) > 0 {
		h.last = e.State
	}
	last := h.last
	h.mu.Unlock()

	h.line(e.Time, e.Kind.String(), last, e.Reason)
	if h.app.settings.json {
		r := record{Time: e.Time.UTC().Format(time.RFC3339), Reason: e.Reason}
		if e.Kind == forward.Changed && len(e.Previous) > 0 {
			r.Previous = endpointOf(e.Previous[0].External)
		}
		h.app.records(e.Kind.String(), last, r)
	} else if e.Kind != forward.Lost {
		h.app.printf("%s\n", endpointText(last[0].External))
	}
	if first {
		h.app.sayf("By %s. Kept alive until Ctrl-C.\n", grantor(last[0]))
		h.app.remark(h.wish, last)
		close(h.shown)
	}
}

// line is an event for people.
func (h *holding) line(at time.Time, kind string, ms []backends.Mapping, reason string) {
	text := fmt.Sprintf("%s %s %s", at.Local().Format(time.TimeOnly), kind, arrow(ms))
	if reason != "" {
		text += " (" + reason + ")"
	}
	h.app.sayf("%s\n", text)
}

// end takes the mapping away.
func (h *holding) end(ctx context.Context, f *forward.Forwarder) error {
	bound := unmapTime
	if t := h.app.settings.timeout; t != 0 {
		bound = t
	}
	ctx, cancel := within(ctx, bound)
	defer cancel()
	err := f.Disable(ctx)
	_ = f.Close() // after it comes no event
	if err != nil {
		return fmt.Errorf("%w: %w", errNotUnmapped, err)
	}
	now := time.Now()
	h.line(now, "unmapped", h.last, "")
	if h.app.settings.json {
		gone := slices.Clone(h.last)
		for i := range gone {
			gone[i].Lifetime, gone[i].Granted = 0, time.Time{}
		}
		h.app.records("unmapped", gone, record{Time: now.UTC().Format(time.RFC3339)})
	}
	return nil
}

// within bounds a context by a time of ours, whose passing is the gateway's
// silence and no failure of the caller's.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w within %v", backends.ErrNoReply, d))
}
