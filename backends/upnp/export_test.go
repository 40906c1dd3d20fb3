package upnp

import "time"

// MaxEntries is how many rows List reads of a device.
const MaxEntries = maxEntries

// SetRetryDelay sets how long a device is left alone that failed for no reason given.
func (b *Backend) SetRetryDelay(d time.Duration) { b.retryDelay = d }

// ShortenDelays shortens the pauses that only politeness asks for.
func (b *Backend) ShortenDelays() *Backend {
	b.retryDelay = 10 * time.Millisecond
	return b.SetQueryInterval(20 * time.Millisecond)
}

// SetQueryInterval sets how far apart the questions are that hints lead to. Call it before
// Watch.
func (b *Backend) SetQueryInterval(interval time.Duration) *Backend {
	b.queryInterval = interval
	return b
}

// Watchers is how many calls of Watch are under way.
func (b *Backend) Watchers() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.watchers)
}
