package bench

import (
	"slices"
	"time"
)

// Sample is one measurement.
type Sample struct {
	Scenario  string `json:"scenario"`
	Candidate string `json:"peer"`
	Round     int    `json:"round"`
	Order     int    `json:"order"` // position within the round
	// Took is the time until the candidate returned the external endpoint or an error.
	Took time.Duration `json:"took_ns"`
	// SSDP is the part of Took that the router caused: the time from the first search to
	// the first response. It is zero if the candidate did not search, or if there was no
	// response.
	SSDP     time.Duration `json:"ssdp_ns,omitempty"`
	Protocol string        `json:"way,omitempty"` // empty if the candidate does not report it
	Err      string        `json:"error,omitempty"`
}

// Figure is a single measured value, in contrast to the times of many rounds.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// Run describes a run: its time, the machine, and the versions.
type Run struct {
	Date     time.Time         `json:"date"`
	Took     time.Duration     `json:"took_ns"`
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	Load     string            `json:"load_at_start"`
	Go       string            `json:"go"`
	Versions map[string]string `json:"versions"`
	Seed     uint64            `json:"seed"`
}

// Result is the result of a run.
type Result struct {
	Run
	Rounds  int           `json:"rounds"`
	Spend   time.Duration `json:"spend_ns"` // limit for one candidate in one scenario
	Samples []Sample      `json:"samples"`
	Figures []Figure      `json:"figures"`
}

// of returns the samples of a candidate in a scenario.
func (r *Result) of(scenario, candidate string) []Sample {
	var out []Sample
	for _, s := range r.Samples {
		if s.Scenario == scenario && s.Candidate == candidate {
			out = append(out, s)
		}
	}
	return out
}

// measure returns a value of a sample, in milliseconds.
type measure func(Sample) float64

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func took(s Sample) float64 { return ms(s.Took) }

// withoutSSDP returns the time without the delay of the router.
func withoutSSDP(s Sample) float64 { return ms(s.Took - s.SSDP) }

// summary summarizes the samples in which a candidate got a mapping or, if failures is true,
// the samples in which it failed.
func (r *Result) summary(scenario, candidate string, failures bool, what measure) Summary {
	var values []float64
	for _, s := range r.of(scenario, candidate) {
		if (s.Err != "") == failures {
			values = append(values, what(s))
		}
	}
	return Summarize(values)
}

// pairs compares two candidates within each round in which both succeeded or, if failures is
// true, both failed.
func (r *Result) pairs(scenario, a, b string, failures bool, compare func(a, b Sample) float64) Summary {
	var values []float64
	samplesB := r.of(scenario, b)
	for _, s := range r.of(scenario, a) {
		i := slices.IndexFunc(samplesB, func(o Sample) bool { return o.Round == s.Round })
		if i >= 0 && (s.Err != "") == failures && (samplesB[i].Err != "") == failures {
			values = append(values, compare(s, samplesB[i]))
		}
	}
	return Summarize(values)
}

// ratio returns the median of the time of a divided by the time of b.
func (r *Result) ratio(scenario, a, b string, failures bool, what measure) Summary {
	return r.pairs(scenario, a, b, failures, func(x, y Sample) float64 { return what(x) / what(y) })
}

// excess returns the median of the time of a minus the time of b, in milliseconds.
func (r *Result) excess(scenario, a, b string, what measure) Summary {
	return r.pairs(scenario, a, b, false, func(x, y Sample) float64 { return what(x) - what(y) })
}

// figure returns the figure with the given name.
func (r *Result) figure(name string) (Figure, bool) {
	i := slices.IndexFunc(r.Figures, func(f Figure) bool { return f.Name == name })
	if i < 0 {
		return Figure{}, false
	}
	return r.Figures[i], true
}
