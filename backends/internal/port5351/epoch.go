package port5351

import "time"

// epochClock follows the time that a gateway tells since its table was last
// empty. The zero value has seen nothing.
type epochClock struct {
	seen   bool
	server time.Duration
	at     time.Time // with a monotonic reading
}

// observe records the epoch of an answer and reports whether the rule says that
// the gateway has lost its mappings since the last one, and when at the latest, if
// the epoch tells that.
func (c *epochClock) observe(server time.Duration, sent, at time.Time, rule epochRule) (lost bool, since time.Time) {
	before := *c
	*c = epochClock{seen: true, server: server, at: at}
	if !before.seen {
		return false, time.Time{}
	}
	elapsed := at.Sub(before.at)
	if server < elapsed { // else the clock was set, and started we know not when
		// In whole seconds; but it was up when it took the question.
		if since = at.Add(-server); sent.Before(since) {
			since = sent
		}
	}
	return rule(before.server, server, elapsed), since
}

// epochRule compares two epochs that were heard so far apart.
type epochRule func(before, now, elapsed time.Duration) (lost bool)

// natpmpLost is the rule of RFC 6886 section 3.6: the gateway's clock may run
// slow by an eighth, and be read late by two seconds. It never runs too fast.
func natpmpLost(before, now, elapsed time.Duration) bool {
	return now < before+elapsed*7/8-2*time.Second
}

// pcpLost is the rule of RFC 6887 section 8.5, in whole seconds. The clock may
// differ from ours by a sixteenth, either way, and two seconds. The arithmetic
// is signed: the standard says that unsigned will do, but then a step back by
// the one second that it allows would count as a loss.
func pcpLost(before, now, elapsed time.Duration) bool {
	serverDelta := int64((now - before) / time.Second)
	clientDelta := int64(elapsed / time.Second)
	return now < before-time.Second ||
		clientDelta+2 < serverDelta-serverDelta/16 ||
		serverDelta+2 < clientDelta-clientDelta/16
}
