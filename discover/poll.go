package discover

import (
	"context"
	"fmt"
	"net"
	"time"
)

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
