package discover

import "context"

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
