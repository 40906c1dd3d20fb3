package bench

import (
	"math/rand/v2"
	"testing"
)

// TestRank compares rank with the ranks in published tables of the confidence interval of a
// median (Conover, Practical Nonparametric Statistics, and others).
func TestRank(t *testing.T) {
	for n, want := range map[int]int{1: 0, 5: 0, 6: 1, 8: 1, 9: 2, 10: 2, 12: 3, 20: 6, 25: 8, 30: 10, 50: 18, 100: 40} {
		if got := rank(n); got != want {
			t.Errorf("%d values: %d, want %d", n, got, want)
		}
	}
}

func TestSummarize(t *testing.T) {
	if s := Summarize(nil); s != (Summary{}) {
		t.Errorf("no values: %+v", s)
	}
	if s := Summarize([]float64{3, 1, 2, 10}); s != (Summary{N: 4, Median: 2.5, Low: 1, High: 10}) {
		t.Errorf("four values: %+v", s)
	}
	values := []float64{9, 1, 8, 2, 7, 3, 6, 4, 5}
	if s := Summarize(values); s != (Summary{N: 9, Median: 5, Low: 2, High: 8, Interval: true}) {
		t.Errorf("nine values: %+v", s)
	}
	if values[0] != 9 {
		t.Error("Summarize sorted the slice of the caller")
	}
}

// TestConfidenceInterval checks that the interval misses the true median of a skewed
// distribution in one of twenty cases.
func TestConfidenceInterval(t *testing.T) {
	const runs, n, median = 2000, 25, 0.6931471805599453
	rng, missed := rand.New(rand.NewPCG(1, 2)), 0
	for range runs {
		var values []float64
		for range n {
			values = append(values, rng.ExpFloat64())
		}
		if s := Summarize(values); median < s.Low || median > s.High {
			missed++
		}
	}
	if missed > runs*6/100 || missed < runs*2/100 {
		t.Errorf("missed in %d of %d", missed, runs)
	}
}
