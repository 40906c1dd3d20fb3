package natpmp

// ExpireExternal makes the external address that was last told too old.
func (b *Backend) ExpireExternal() { b.expireExternal() }
