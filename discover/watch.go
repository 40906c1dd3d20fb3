package discover

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Watch calls notify after routes, addresses, links or policy rules changed,
// until ctx ends, and returns the cause of that end (context.Cause). It fails
// earlier only if the system refuses to be watched.
//
// Changes within 100 ms make one call. Calls never overlap; what changes during
// one makes another. A call can be spurious (an address renewed, say): notify is
// to look again at what it cares for. Watch does not return before a running
// notify does.
//
// Changes are seen from the moment that Watch is entered, so start it before
// reading the state that is to be kept up to date. Linux reports them. macOS,
// FreeBSD, OpenBSD, NetBSD and Windows hint at them, on which the state is compared,
// and every 30 seconds besides; every 5 seconds if the system refuses to hint.
// Elsewhere Watch fails at once, with errors.ErrUnsupported.
func Watch(ctx context.Context, notify func()) error {
	w, err := openWatcher()
	if err != nil {
		return err
	}
	return w.run(ctx, notify)
}

// poll calls notify when snapshot, taken at that interval and a moment after each
// hint, differs from the one before, until ctx ends.
func poll(ctx context.Context, every time.Duration, hints <-chan struct{}, snapshot func() string, notify func()) error {
	was := snapshot()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-hints:
			if settled == nil {
				settled = time.After(settle)
			}
			continue
		case <-settled:
			settled = nil
		case <-tick.C:
		}
		now := snapshot()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if now != was {
			was = now
			notify()
		}
	}
}

// settle is how long changes are gathered before notify hears of them: bringing
// up an interface makes a dozen.
const settle = 100 * time.Millisecond

// snapshot describes gateways, links and addresses, for comparison only. Errors
// are part of it: their coming and going is a change.
func snapshot() string {
	gws, err := Gateways()
	s := fmt.Sprintln(gws, err)
	ifis, err := net.Interfaces()
	s += fmt.Sprintln(err)
	for _, ifi := range ifis {
		addrs, err := ifi.Addrs()
		s += fmt.Sprintln(ifi.Index, ifi.Name, ifi.Flags, addrs, err)
	}
	return s
}
