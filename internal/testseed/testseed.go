// Package testseed selects the seed of the random choices in tests.
package testseed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Of returns the seed of a test, and logs it. It is 1 in every run, so that a test does not
// fail by chance. GOFORWARD_SEED sets another seed, or a new one for each call if it is
// "random".
func Of(tb testing.TB) uint64 {
	tb.Helper()
	seed := uint64(1)
	switch text := os.Getenv("GOFORWARD_SEED"); text {
	case "":
	case "random":
		seed = rand.Uint64()
	default:
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			tb.Fatalf("GOFORWARD_SEED: %v", err)
		}
	}
	tb.Logf("GOFORWARD_SEED=%d", seed)
	return seed
}
