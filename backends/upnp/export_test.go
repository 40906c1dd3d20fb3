package upnp

import "time"

// MaxEntries is how many rows List reads of a device.
const MaxEntries = maxEntries

// Breathe sets how long a device is left alone that failed for no reason given.
func (b *Backend) Breathe(d time.Duration) { b.breather = d }

// Hasten shortens the pauses that only politeness asks for.
func (b *Backend) Hasten() *Backend {
	b.breather = 10 * time.Millisecond
	return b.Watchful(20 * time.Millisecond)
}

// Watchful sets how far apart the questions are that hints lead to. Call it before
// Watch.
func (b *Backend) Watchful(between time.Duration) *Backend {
	b.between = between
	return b
}

// Watchers is how many calls of Watch are under way.
func (b *Backend) Watchers() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.signals)
}
