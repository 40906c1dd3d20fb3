package natpmp

// Forget makes the external address that was last told too old.
func (b *Backend) Forget() { b.forget() }
