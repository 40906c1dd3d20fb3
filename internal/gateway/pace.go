package gateway

import "time"

// How often all mappings of a gateway are asked for again because of a change,
// so that a gateway whose clock runs wild causes no storm: a few rounds at once,
// since a line that goes down and up again makes two changes, then one in a
// while.
const (
	recoveryBurst = 3
	recoveryPause = 5 * time.Second
)

// Pacer says when the next round may come. The zero value has seen none.
type Pacer struct {
	earned time.Time // when what the rounds so far have spent is earned back
}

func (p *Pacer) Next(now time.Time) time.Time {
	earned := p.earned
	if earned.Before(now) {
		earned = now
	}
	if earned.Sub(now) < recoveryBurst*recoveryPause { // else a round is still to come
		p.earned = earned.Add(recoveryPause)
	}
	if at := earned.Add(-(recoveryBurst - 1) * recoveryPause); at.After(now) {
		return at
	}
	return now
}
