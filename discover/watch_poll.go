//go:build darwin || freebsd || netbsd || openbsd || windows

package discover

import "context"

// watcher compares snapshots when the system hints at a change.
type watcher struct{}

func openWatcher() (*watcher, error) {
	_, err := defaultRoutes()
	return &watcher{}, err
}

func (*watcher) run(ctx context.Context, notify func()) error {
	return pollHints(ctx, openHints, snapshot, notify)
}

// sendHint reports a possible change, unless a hint is already pending.
func sendHint(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
