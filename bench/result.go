package bench

import (
	"slices"
	"time"
)

// Sample is one measurement.
type Sample struct {
	Scenario string `json:"scenario"`
	Peer     string `json:"peer"`
	Round    int    `json:"round"`
	Order    int    `json:"order"` // within its round
	// Took is the time until the external endpoint was known, or until it failed.
	Took time.Duration `json:"took_ns"`
	// SSDP is of Took what was the router's: from the first search that was sent to
	// the first answer that came. Zero: it did not search, or nobody answered.
	SSDP time.Duration `json:"ssdp_ns,omitempty"`
	Way  string        `json:"way,omitempty"` // the protocol, where the peer tells
	Err  string        `json:"error,omitempty"`
}

// Figure is something measured that is no time of many rounds.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// Result is a whole run.
type Result struct {
	Date     time.Time         `json:"date"`
	Took     time.Duration     `json:"took_ns"`
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	Load     string            `json:"load_at_start"`
	Go       string            `json:"go"`
	Versions map[string]string `json:"versions"`
	Seed     uint64            `json:"seed"`
	Rounds   int               `json:"rounds"`
	Spend    time.Duration     `json:"spend_ns"` // on one peer in one scenario
	Samples  []Sample          `json:"samples"`
	Figures  []Figure          `json:"figures"`
}

// of returns the samples of a peer in a scenario.
func (r *Result) of(scenario, peer string) []Sample {
	var out []Sample
	for _, s := range r.Samples {
		if s.Scenario == scenario && s.Peer == peer {
			out = append(out, s)
		}
	}
	return out
}

// measure is what is told of a sample, in milliseconds.
type measure func(Sample) float64

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func took(s Sample) float64 { return ms(s.Took) }

// own is what it took without the router's delay.
func own(s Sample) float64 { return ms(s.Took - s.SSDP) }

// summary is of those that got a mapping or, with failures, of those that did not.
func (r *Result) summary(scenario, peer string, failures bool, what measure) Summary {
	var values []float64
	for _, s := range r.of(scenario, peer) {
		if (s.Err != "") == failures {
			values = append(values, what(s))
		}
	}
	return Summarize(values)
}

// pairs compares two peers within each round that both have a value in.
func (r *Result) pairs(scenario, a, b string, failures bool, compare func(a, b Sample) float64) Summary {
	var values []float64
	others := r.of(scenario, b)
	for _, s := range r.of(scenario, a) {
		i := slices.IndexFunc(others, func(o Sample) bool { return o.Round == s.Round })
		if i >= 0 && (s.Err != "") == failures && (others[i].Err != "") == failures {
			values = append(values, compare(s, others[i]))
		}
	}
	return Summarize(values)
}

// ratio is the median of a's time by b's.
func (r *Result) ratio(scenario, a, b string, failures bool, what measure) Summary {
	return r.pairs(scenario, a, b, failures, func(x, y Sample) float64 { return what(x) / what(y) })
}

// excess is the median of what a takes longer than b, in milliseconds.
func (r *Result) excess(scenario, a, b string, what measure) Summary {
	return r.pairs(scenario, a, b, false, func(x, y Sample) float64 { return what(x) - what(y) })
}

// figure is a figure by its name.
func (r *Result) figure(name string) (Figure, bool) {
	i := slices.IndexFunc(r.Figures, func(f Figure) bool { return f.Name == name })
	if i < 0 {
		return Figure{}, false
	}
	return r.Figures[i], true
}
