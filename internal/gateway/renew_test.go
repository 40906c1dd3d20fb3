package gateway

import (
	"slices"
	"testing"
	"time"
)

// Changes ten times a second for a minute: three rounds at once, then one in
// five seconds.
func TestPacer(t *testing.T) {
	var (
		p      TokenBucket
		begin  = time.Now()
		rounds []time.Duration
		due    time.Time
	)
	for at := begin; at.Before(begin.Add(time.Minute)); at = at.Add(100 * time.Millisecond) {
		if !due.IsZero() && !at.Before(due) {
			rounds, due = append(rounds, due.Sub(begin)), time.Time{}
		}
		if next := p.Next(at); due.IsZero() || next.Before(due) { // as the scheduler hastens
			due = next
		}
	}
	if len(rounds) < 12 || len(rounds) > 15 {
		t.Errorf("%d rounds in a minute: %v", len(rounds), rounds)
	}
	if !slices.IsSorted(rounds) || rounds[2] > time.Second {
		t.Errorf("rounds at %v, want three at once", rounds)
	}
	if at := begin.Add(time.Hour); !p.Next(at).Equal(at) {
		t.Error("an hour later a round has to wait")
	}
}
