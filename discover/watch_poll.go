//go:build !linux

package discover

import (
	"context"
	"time"
)

const pollEvery = 5 * time.Second

// A watcher compares snapshots. The routing sockets of the BSDs and the
// notifications of Windows would report changes, but on systems where this was
// never run a loop that cannot miss any is worth more than five seconds.
type watcher struct{}

func openWatcher() (*watcher, error) {
	_, err := defaultRoutes()
	return &watcher{}, err
}

func (*watcher) run(ctx context.Context, notify func()) error {
	return poll(ctx, pollEvery, snapshot, notify)
}
