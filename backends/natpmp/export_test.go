package natpmp

// ExpireExternal makes the recorded external address too old to be used.
func (b *Backend) ExpireExternal() { b.expireExternal() }
