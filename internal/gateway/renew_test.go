package gateway

import (
	"slices"
	"testing"
	"time"
)

// TestTokenBucket makes a change ten times a second for a minute: three rounds are allowed at
// once, then one in five seconds.
func TestTokenBucket(t *testing.T) {
	var (
		p         TokenBucket
		begin     = time.Now()
		rounds    []time.Duration
		scheduled time.Time
	)
	for at := begin; at.Before(begin.Add(time.Minute)); at = at.Add(100 * time.Millisecond) {
		if !scheduled.IsZero() && !at.Before(scheduled) {
			rounds, scheduled = append(rounds, scheduled.Sub(begin)), time.Time{}
		}
		if next := p.Next(at); scheduled.IsZero() || next.Before(scheduled) { // as the scheduler advances a round
			scheduled = next
		}
	}
	if len(rounds) < 12 || len(rounds) > 15 {
		t.Errorf("%d rounds in a minute: %v", len(rounds), rounds)
	}
	if !slices.IsSorted(rounds) || rounds[2] > time.Second {
		t.Errorf("rounds at %v, want three at once", rounds)
	}
	if at := begin.Add(time.Hour); !p.Next(at).Equal(at) {
		t.Error("an hour later a round is delayed")
	}
}
