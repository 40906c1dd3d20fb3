package bench

import (
	"math"
	"slices"
)

// Summary is the median of a number of values, with the interval that contains the true
// median with a probability of 95 %.
type Summary struct {
	N      int
	Median float64
	// Low and High are two of the values. The binomial distribution of the number of
	// values below the median determines which two; this makes no assumption about the
	// distribution of the values. Interval is false for fewer than six values: they have
	// no such interval.
	Low, High float64
	Interval  bool
}

const confidence = 0.95

// Summarize returns the summary of the values, or the zero Summary if there are none.
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

// rank returns the largest k such that the median lies between the k-th smallest and the
// k-th largest of n values with the given confidence. It returns 0 if there is no such k.
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

// logChoose returns the logarithm of the binomial coefficient.
func logChoose(n, k int) float64 {
	a, _ := math.Lgamma(float64(n + 1))
	b, _ := math.Lgamma(float64(k + 1))
	c, _ := math.Lgamma(float64(n - k + 1))
	return a - b - c
}
