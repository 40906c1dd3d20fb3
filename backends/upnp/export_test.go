package upnp

import "time"

// MaxEntries is the largest number of entries that List reads from a device.
const MaxEntries = maxEntries

// SetRetryDelay sets the delay before a request is retried after an unexplained
// failure.
func (b *Backend) SetRetryDelay(d time.Duration) { b.retryDelay = d }

// SetExternalAge sets the maximum age of an external address that is used again.
func (b *Backend) SetExternalAge(d time.Duration) { b.externalAge = d }

// SetTryFirstWait sets how long a search waits for the description that TryFirst named.
func (b *Backend) SetTryFirstWait(d time.Duration) { b.tryFirstWait = d }

// ReadOneByOne makes List request one row at a time, however slow the replies are.
func (b *Backend) ReadOneByOne() *Backend {
	b.slowReply = time.Hour
	return b
}

// ShortenDelays shortens the retry delay and the interval between queries.
func (b *Backend) ShortenDelays() *Backend {
	b.retryDelay = 10 * time.Millisecond
	return b.SetQueryInterval(20 * time.Millisecond)
}

// SetQueryInterval sets the minimum time between queries that hints cause. It must
// be called before Watch.
func (b *Backend) SetQueryInterval(interval time.Duration) *Backend {
	b.queryInterval = interval
	return b
}

// Watchers returns the number of calls of Watch that are running.
func (b *Backend) Watchers() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.watchers)
}
