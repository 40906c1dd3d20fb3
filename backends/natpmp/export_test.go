package natpmp

import "time"

// SetExternalAge sets the maximum age of an external address that is used again.
func (b *Backend) SetExternalAge(d time.Duration) { b.externalAge = d }

// ExpireExternal makes the recorded external address too old to be used.
func (b *Backend) ExpireExternal() { b.expireExternal() }
