package forward

import "time"

// SetJitter replaces the source of chance that spreads renewals and retries.
// Call it before the first mapping.
func (f *Forwarder) SetJitter(jitter func(time.Duration) time.Duration) { f.jitter = jitter }

// MaxWorkers bounds the attempts under way at once.
const MaxWorkers = maxWorkers
