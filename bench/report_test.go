package bench

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

func samples(scenario, candidate string, values ...int) []Sample {
	var out []Sample
	for round, v := range values {
		s := Sample{Scenario: scenario, Candidate: candidate, Round: round, Took: time.Duration(v) * time.Millisecond}
		if v < 0 {
			s.Took, s.Err = -s.Took, "it | failed"
		}
		out = append(out, s)
	}
	return out
}

func verdict(t *testing.T, r *Result, what string) Verdict {
	t.Helper()
	for _, v := range Budgets(r) {
		if v.What == what {
			return v
		}
	}
	t.Fatalf("no budget %q", what)
	return Verdict{}
}

func TestBudgets(t *testing.T) {
	const what = "cold Enable over NAT-PMP, " + keyNATPMP
	for name, c := range map[string]struct {
		goforward, geth []int
		want            string
	}{
		"no samples":                          {nil, nil, "–"},
		"samples of the other candidate only": {nil, []int{1}, "–"},
		"faster":                              {[]int{1, 2, 1, 2, 1, 2}, []int{3, 3, 3, 3, 3, 3}, "PASS"},
		"slower":                              {[]int{4, 5, 6, 7, 8, 9}, []int{3, 3, 3, 3, 3, 3}, "FAIL"},
		"alternately faster and slower":       {[]int{1, 5, 1, 5, 1, 5}, []int{3, 3, 3, 3, 3, 3}, "open"},
		"few values":                          {[]int{1, 1}, []int{3, 3}, "PASS, few values"},
		"slower in a round that the other failed": {[]int{9, 1}, []int{-3, 3}, "PASS, few values"},
		"failures of goforward are ignored":       {[]int{-1, 9}, []int{3, 3}, "FAIL, few values"},
	} {
		r := &Result{Samples: append(samples(keyNATPMP, goforwardName, c.goforward...), samples(keyNATPMP, gethName, c.geth...)...)}
		if v := verdict(t, r, what); v.Verdict != c.want {
			t.Errorf("%s: %+v, want %s", name, v, c.want)
		}
	}
}

// TestBudgetsAgainstRaw checks that the time of the raw sockets in the same round, with the
// delay of the router, is subtracted.
func TestBudgetsAgainstRaw(t *testing.T) {
	for name, c := range map[string]struct {
		goforward, raw []int
		want           string
	}{
		"within 5 ms": {[]int{55, 205, 55, 205, 55, 205}, []int{50, 200, 50, 200, 50, 200}, "PASS"},
		"6 ms more":   {[]int{56, 206, 56, 206, 56, 206}, []int{50, 200, 50, 200, 50, 200}, "FAIL"},
	} {
		r := &Result{Samples: append(samples(keyUPnP, goforwardName, c.goforward...), samples(keyUPnP, rawUPnPName, c.raw...)...)}
		for i := range r.Samples {
			r.Samples[i].SSDP = 50 * time.Millisecond // part of the measured time
		}
		if v := verdict(t, r, "cold Enable, "+keyUPnP); v.Verdict != c.want {
			t.Errorf("%s: %+v, want %s", name, v, c.want)
		}
	}
}

// TestBudgetsOfClose checks that a Close that leaves a mapping fails, however fast it is.
func TestBudgetsOfClose(t *testing.T) {
	for name, c := range map[string]struct {
		goforward        []int
		ratio, completed string
	}{
		"no samples":                {nil, "–", "–"},
		"fast and complete":         {[]int{30, 30, 30, 30, 30, 30}, "PASS", "PASS"},
		"slow and complete":         {[]int{31, 31, 31, 31, 31, 31}, "FAIL", "PASS"},
		"one that leaves a mapping": {[]int{30, 30, 30, 30, 30, 30, -1}, "PASS", "FAIL"},
	} {
		key, raw := closeComparisons[0].slowKey, closeComparisons[0].raw
		r := &Result{Samples: append(samples(key, goforwardCloseName, c.goforward...), samples(key, raw, 10, 10, 10, 10, 10, 10, 10)...)}
		if v := verdict(t, r, key); v.Verdict != c.ratio {
			t.Errorf("%s: %+v, want %s", name, v, c.ratio)
		}
		if v := verdict(t, r, key+", all deleted"); v.Verdict != c.completed {
			t.Errorf("%s: %+v, want %s", name, v, c.completed)
		}
	}
	if s := withoutMappings(Sample{}, 1); s.Err == "" {
		t.Error("a sample after which a mapping remains has not failed")
	}
}

// TestBudgetsOfFailuresAndFigures checks that the budget for a missing gateway uses the time
// of failures, and that a figure is compared directly.
func TestBudgetsOfFailuresAndFigures(t *testing.T) {
	r := &Result{
		Samples: samples(keyRefused, goforwardName, -1200, -1201, -1202, -1200, -1200, -1201),
		Figures: []Figure{{figureHeap, 1537, "bytes"}, {figureGoroutines, 5, ""}, {figureOneliner, 8.1, "MiB"}},
	}
	for what, want := range map[string]Verdict{
		"no gateway found, 5351 refused": {Measured: "1200 (1200–1202) ms, n = 6", Verdict: "PASS"},
		figureHeap:                       {Measured: "1537 bytes", Verdict: "FAIL"},
		figureGoroutines:                 {Measured: "5", Verdict: "PASS"},
		figureOneliner:                   {Measured: "8.1 MiB", Verdict: "FAIL"},
	} {
		if v := verdict(t, r, what); v.Measured != want.Measured || v.Verdict != want.Verdict {
			t.Errorf("%s: %+v, want %+v", what, v, want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := &Result{Run: Run{Versions: map[string]string{"m": "v1.2.3"}}}
	ten := samples(keyUPnP, goforwardName, 10, 10, 10, 10, 10, 10)
	for i := range ten {
		ten[i].SSDP = 4 * time.Millisecond
	}
	r.Samples = append(append(r.Samples, ten...), samples(keyUPnP, rawUPnPName, 4, 4, 4, 4, 4, -5)...)
	text := Markdown(r, Legend{
		Candidates: []CandidateInfo{{Name: goforwardName, Module: "m"}},
		Sections:   []Section{{Key: keyUPnP, Title: "UPnP", Candidates: []string{goforwardName, rawUPnPName, upnpcName}, SSDP: true}},
	})
	for _, line := range []string{
		"| goforward | 6 | 0 | 10 (10–10) | 4 | 6 (6–6) |  |  |",
		"| raw UPnP | 6 | 1 | 4 | 0 | 4 | 2.5 | 1.5 |",
		"- raw UPnP: it / failed (1)",
		"| goforward | v1.2.3 | calls in a process",
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	if strings.Contains(text, upnpcName) {
		t.Error("the table has a row of a candidate without samples")
	}
}

// TestRoundInterval checks that slow candidates run in fewer rounds.
func TestRoundInterval(t *testing.T) {
	b := &bench{Result: Result{Rounds: 30, Spend: time.Minute}}
	for first, want := range map[time.Duration]int{0: 1, time.Second: 1, 2 * time.Second: 1, 4 * time.Second: 2, 9 * time.Second: 5, 20 * time.Second: 10} {
		if got := b.interval(first); got != want {
			t.Errorf("%v: every %d, want %d", first, got, want)
		}
	}
}

// TestSampleOfCrashedWorker checks that a worker that crashes is a failed sample.
func TestSampleOfCrashedWorker(t *testing.T) {
	s := sample(exec.CommandContext(t.Context(), "sh", "-c", "echo panic: reason >&2; echo more >&2; exit 3"), target{Candidate: goforwardName})
	if !strings.Contains(s.Err, "exit status 3") || !strings.Contains(s.Err, "panic: reason") {
		t.Errorf("%+v", s)
	}
}

// TestVersions checks that the version of every candidate's module is known.
func TestVersions(t *testing.T) {
	v := versions(t.Context())
	for _, p := range candidates {
		if p.module != "" && !p.process && v[p.module] == "" {
			t.Errorf("%s: no version of %s in %v", p.name, p.module, v)
		}
	}
}
