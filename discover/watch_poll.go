//go:build darwin || freebsd || netbsd || openbsd || windows

package discover

import (
	"context"
	"time"
)

// The intervals at which snapshots are compared: pollEvery if the system gives no hints, and
// pollWithHints if it does. Polling also covers missing hints: the code that receives
// hints was never run.
const (
	pollEvery     = 5 * time.Second
	pollWithHints = 30 * time.Second
)

// watcher compares snapshots when the system hints at a change.
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
	return poll(ctx, pollWithHints, hints, snapshot, notify)
}

// sendHint reports a possible change, unless a hint is already pending.
func sendHint(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
