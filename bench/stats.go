package bench

import (
	"math"
	"slices"
)

// Summary is what is told of many values: their median, with the interval that
// holds the true one with 95 %.
type Summary struct {
	N      int
	Median float64
	// Low and High are values themselves, picked by the binomial distribution of how
	// many lie below the median: nothing is assumed of how they are distributed.
	// Interval is false for fewer than six, of which none can be told.
	Low, High float64
	Interval  bool
}

const confidence = 0.95

// Summarize returns the zero value where there are no values.
func Summarize(values []float64) Summary {
	n := len(values)
	if n == 0 {
		return Summary{}
	}
	v := slices.Sorted(slices.Values(values))
	s := Summary{N: n, Median: (v[(n-1)/2] + v[n/2]) / 2, Low: v[0], High: v[n-1]}
	if k := rank(n); k > 0 {
		s.Low, s.High, s.Interval = v[k-1], v[n-k], true
	}
	return s
}

// rank is the largest k such that the k-th smallest and the k-th largest of n
// values have the median between them with the confidence; 0 where there is none.
func rank(n int) int {
	tail, k := 0.0, 0
	for i := range n {
		tail += math.Exp(logChoose(n, i) - float64(n)*math.Ln2)
		if tail > (1-confidence)/2 {
			break
		}
		k = i + 1
	}
	return k
}

func logChoose(n, k int) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return a - b - c
}
