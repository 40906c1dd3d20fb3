//go:build darwin || freebsd || netbsd || openbsd || windows

package discover

import (
	"context"
	"time"
)

// How often snapshots are compared: if the system refuses to give hints, and as a
// net beneath those that it gives, which were never seen to come.
const (
	pollEvery  = 5 * time.Second
	pollBeside = 30 * time.Second
)

// A watcher compares snapshots when the system hints at a change.
type watcher struct{}

func openWatcher() (*watcher, error) {
	_, err := defaultRoutes()
	return &watcher{}, err
}

func (*watcher) run(ctx context.Context, notify func()) error {
	hints, stop, err := openHints()
	if err != nil {
		return poll(ctx, pollEvery, nil, snapshot, notify)
	}
	defer stop()
	return poll(ctx, pollBeside, hints, snapshot, notify)
}

// hint leaves word that something may have changed.
func hint(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
