package testseed_test

import (
	"testing"

	"github.com/natforward/goforward/internal/testseed"
)

func TestOf(t *testing.T) {
	for text, want := range map[string]uint64{"": 1, "7": 7, "18446744073709551615": 1<<64 - 1} {
		t.Setenv("GOFORWARD_SEED", text)
		if got := testseed.Of(t); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	t.Setenv("GOFORWARD_SEED", "random")
	if first, second := testseed.Of(t), testseed.Of(t); first == second { // once in 2⁶⁴ runs by chance
		t.Errorf("%d twice", first)
	}
}
