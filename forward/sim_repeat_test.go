//go:build !race

package forward_test

import (
	"testing"
	"testing/synctest"
	"time"
)

// One seed is one run, but with the race detector, which shuffles what happens in
// one moment.
func TestSimulationRepeats(t *testing.T) {
	seed := simSeed(t)
	s := simulation{count: 50, lasts: 2 * day, loss: 0.3, every: 3 * time.Hour, outage: 3 * time.Hour, lifetime: 2 * time.Hour, mixed: true}
	var digests [2]uint64
	for i := range digests {
		synctest.Test(t, func(t *testing.T) { digests[i] = s.run(t, seed) })
	}
	if digests[0] != digests[1] {
		t.Errorf("two runs with seed %d differ", seed)
	}
}
