package port5351

import "time"

// epochClock records the gateway's epoch: the time since its mapping table was last
// empty. The zero value has no record.
type epochClock struct {
	valid    bool
	epoch    time.Duration
	received time.Time // with a monotonic reading
	stuck    bool      // the epoch was the same in two responses, although it should have grown
}

// observe records the epoch of a response. The result lost reports whether, by the
// rule, the gateway has lost its mappings since the previous response. The result
// since is the latest time at which it can have lost them, or the zero Time if the
// epoch does not show that. An epoch that stands still counts as a loss once.
func (c *epochClock) observe(epoch time.Duration, sent, received time.Time, rule epochRule) (lost bool, since time.Time) {
	previous := *c
	*c = epochClock{valid: true, epoch: epoch, received: received}
	if !previous.valid {
		return false, time.Time{}
	}
	elapsed := received.Sub(previous.received)
	if epoch < elapsed { // otherwise the gateway's clock was set, and the time of the loss is unknown
		// The epoch is in whole seconds, so this time can be up to one second too late.
		// The gateway was up when it received the request.
		if since = received.Add(-epoch); sent.Before(since) {
			since = sent
		}
	}
	lost = rule(previous.epoch, epoch, elapsed)
	if c.stuck = epoch == previous.epoch && (lost || previous.stuck); c.stuck && previous.stuck {
		return false, time.Time{} // some gateways always report the same epoch
	}
	return lost, since
}

// epochRule compares the epochs of two responses that were received elapsed apart.
type epochRule func(previous, current, elapsed time.Duration) (lost bool)

// natpmpLost is the rule of RFC 6886 section 3.6: the gateway's clock may be slow
// by one eighth of the elapsed time and two more seconds. A clock that is fast never
// shows a loss.
func natpmpLost(previous, current, elapsed time.Duration) bool {
	return current < previous+elapsed*7/8-2*time.Second
}

// pcpLost is the rule of RFC 6887 section 8.5, in whole seconds. The gateway's
// clock may differ from the local clock by one sixteenth in either direction, and
// by two more seconds. The arithmetic is signed. The standard allows unsigned
// arithmetic, but then a step back by one second, which the standard permits, would
// count as a loss.
func pcpLost(previous, current, elapsed time.Duration) bool {
	serverDelta := int64((current - previous) / time.Second)
	clientDelta := int64(elapsed / time.Second)
	return current < previous-time.Second ||
		clientDelta+2 < serverDelta-serverDelta/16 ||
		serverDelta+2 < clientDelta-clientDelta/16
}
