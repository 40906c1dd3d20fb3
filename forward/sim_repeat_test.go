package forward_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// One seed is one run: the gateway is asked the same at the same times.
//
// The scheduler orders the goroutines of one moment as it likes, so no event may
// depend on another one of the same moment. The simulation sees to that: all
// goroutines are idle before each fault, and answers and lost calls take a number of
// nanoseconds that differs from call to call. The mappings are of one kind, since
// those of Both and of one internal port share locks, which two goroutines may wait
// for at one moment.
func TestSimulationRepeats(t *testing.T) {
	s := simulation{
		count: 50, lasts: day, loss: 0.3, every: 3 * time.Hour, outage: 3 * time.Hour, lifetime: 2 * time.Hour, keeps: true,
	}
	seed := simSeed(t)
	var runs [2][]simCall
	for i := range runs {
		synctest.Test(t, func(t *testing.T) { runs[i] = s.run(t, seed) })
		// The calls of one moment are made by several goroutines, in any order.
		slices.SortStableFunc(runs[i], simCall.compare)
	}
	for i := range max(len(runs[0]), len(runs[1])) {
		if a, b := nth(runs[0], i), nth(runs[1], i); a != b {
			t.Fatalf("two runs with seed %d differ: call %d of one is %s, of the other %s", seed, i, a, b)
		}
	}
}

// nth is the n-th call as text.
func nth(calls []simCall, n int) string {
	if n >= len(calls) {
		return "not made"
	}
	c := calls[n]
	return fmt.Sprintf("%s of %v port %d, number %d about it, at %v", c.what, c.about.protocol, c.about.port, c.serial, c.at.UTC())
}

func (c simCall) compare(d simCall) int {
	return cmp.Or(c.at.Compare(d.at), cmp.Compare(c.about.port, d.about.port), cmp.Compare(c.about.protocol, d.about.protocol),
		cmp.Compare(c.serial, d.serial))
}
