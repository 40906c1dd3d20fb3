package forward

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/discover"
)

// The machine slept, or its clock was set, where the wall clock has gone on by
// more than the monotonic one, which stands still in sleep on most systems: the
// timers are late then.
const (
	clockLook = 30 * time.Second
	clockSlip = 5 * time.Second
)

// followNetwork keeps mappings on the way out as that changes, until the context
// ends. Who brought backends of their own looks after the way to them.
func (f *Forwarder) followNetwork(ctx context.Context) {
	if f.readyMade == nil {
		f.work.Go(func() {
			err := discover.Watch(ctx, func() { f.look(nil) })
			if ctx.Err() == nil {
				f.log.Warn("the network is no longer watched: changes are noticed at renewals only", "err", err)
			}
		})
	}
	tick := time.NewTicker(clockLook)
	defer tick.Stop()
	for before := time.Now(); ; {
		select {
		case <-tick.C:
		case <-f.strays:
			f.look(nil)
			continue
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if wall := now.Round(0).Sub(before.Round(0)); (wall - now.Sub(before)).Abs() > clockSlip {
			f.look(&backends.Change{Kind: backends.Announced, Reason: "the machine slept, or its clock was set"})
		}
		before = now
	}
}

// look compares the ways in use with those that lead out now, and has what is
// on another one asked for anew: at once, and again as often as it takes, and so
// what nobody has granted yet. A change that is given is about all mappings.
func (f *Forwarder) look(change *backends.Change) {
	back := map[*way]bool{}
	for _, fam := range []family{ipv4, ipv6} {
		f.mu.Lock()
		used := f.current[fam]
		f.mu.Unlock()
		if used == nil {
			continue
		}
		reason, stale := f.strayed(fam, used)
		f.mu.Lock()
		back[used] = used.strayed != "" && reason == ""
		used.strayed, used.stale = reason, stale
		f.mu.Unlock()
		if reason != "" {
			f.log.Info("the network changed", "gateway", used.key.gateway.Addr(), "interface", used.key.iface, "reason", reason)
		}
	}
	f.mu.Lock()
	at := f.looks.next(time.Now())
	f.mu.Unlock()
	var doubtful []*Mapping
	changes := map[*Mapping]backends.Change{}
	for _, m := range f.matching(nil) {
		c := f.changeFor(m, back, change)
		switch {
		case c == nil:
		case c.Kind == backends.Restarted: // is to be on another gateway, where there is no order yet
			m.suspect(*c, at)
		default:
			doubtful, changes[m] = append(doubtful, m), *c
		}
	}
	f.suspect(doubtful, func(m *Mapping) backends.Change { return changes[m] }, at)
}

// changeFor is what a change of the network means for a mapping, or nil.
func (f *Forwarder) changeFor(m *Mapping, back map[*way]bool, change *backends.Change) *backends.Change {
	w, granted := m.way()
	if !granted {
		return &backends.Change{Kind: backends.Announced, Reason: "the network changed"}
	}
	if w == nil {
		return change
	}
	f.mu.Lock()
	reason := w.strayed
	f.mu.Unlock()
	switch {
	case reason != "":
		return &backends.Change{Kind: backends.Restarted, Reason: reason}
	case back[w]:
		return &backends.Change{Kind: backends.Announced, Reason: "the way out is back"}
	}
	return change
}

// way is where the mapping was granted: nil for a backend that was ready-made.
func (m *Mapping) way() (w *way, granted bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.legs) == 0 {
		return nil, false
	}
	return m.legs[0].candidate.way, true
}

// strayed says why a way no longer leads out, or nothing, and whether another
// will be known by the same key.
func (f *Forwarder) strayed(fam family, w *way) (reason string, stale bool) {
	k, err := f.locate(fam)
	switch {
	case errors.Is(err, backends.ErrInvalid):
		return fmt.Sprintf("this host no longer has the address %v", f.config.Source), false
	case err != nil:
		return "there is no way out", false
	case k.gateway.Addr() != w.key.gateway.Addr() || k.iface != w.key.iface:
		return fmt.Sprintf("the way out is another: %v by %s", k.gateway.Addr(), k.iface), false
	case k.source != w.key.source:
		return fmt.Sprintf("this host's address is another: %v", k.source), false
	}
	if w.local.IsValid() && !w.key.source.IsValid() {
		if local, err := localToward(f.ctx, k.gateway.Addr()); err == nil && local != w.local {
			return fmt.Sprintf("this host's address is another: %v", local), true
		}
	}
	return "", false
}

// isElsewhere reports whether legs are on a way that no longer leads out.
func (f *Forwarder) isElsewhere(legs []leg) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := legs[0].candidate.way
	return w != nil && w.strayed != ""
}

// relocate gets legs anew on the way that leads out, and gives the old ones back
// where their gateway can still be reached.
func (f *Forwarder) relocate(ctx context.Context, w *wish, legs []leg) ([]leg, error) {
	made, err := f.establish(ctx, w, legs[0].granted.External.Port())
	if err != nil {
		return legs, err
	}
	f.giveBack(ctx, w.internal.Port(), legs)
	return made, nil
}
