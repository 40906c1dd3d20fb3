package discover

import (
	"context"
	"fmt"
	"net"
	"time"
)

// poll calls notify when snapshot, taken at that interval, differs from the one
// before, until ctx ends.
func poll(ctx context.Context, every time.Duration, snapshot func() string, notify func()) error {
	was := snapshot()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
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
