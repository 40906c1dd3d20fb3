package bench

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

func samples(scenario, peer string, values ...int) []Sample {
	var out []Sample
	for round, v := range values {
		s := Sample{Scenario: scenario, Peer: peer, Round: round, Took: time.Duration(v) * time.Millisecond}
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
	const what = "cold Enable, PCP only"
	for name, c := range map[string]struct {
		ours, theirs []int
		want         string
	}{
		"nobody":                  {nil, nil, "–"},
		"they alone":              {nil, []int{1}, "–"},
		"faster":                  {[]int{1, 2, 1, 2, 1, 2}, []int{3, 3, 3, 3, 3, 3}, "PASS"},
		"slower":                  {[]int{4, 5, 6, 7, 8, 9}, []int{3, 3, 3, 3, 3, 3}, "FAIL"},
		"now so, now so":          {[]int{1, 5, 1, 5, 1, 5}, []int{3, 3, 3, 3, 3, 3}, "open"},
		"few":                     {[]int{1, 1}, []int{3, 3}, "PASS, by few values"},
		"slower where they fail":  {[]int{9, 1}, []int{-3, 3}, "PASS, by few values"},
		"failures are no success": {[]int{-1, 9}, []int{3, 3}, "FAIL, by few values"},
	} {
		r := &Result{Samples: append(samples(keyPCP, ours, c.ours...), samples(keyPCP, tailscaleName, c.theirs...)...)}
		if v := verdict(t, r, what); v.Verdict != c.want {
			t.Errorf("%s: %+v, want %s", name, v, c.want)
		}
	}
}

// A verdict of nothing is the time of failures, and a figure is compared as it is.
func TestBudgetsOthers(t *testing.T) {
	r := &Result{
		Samples: samples(keyRefused, ours, -1200, -1201, -1202, -1200, -1200, -1201),
		Figures: []Figure{{figureHeap, 1025, "bytes"}, {figureGoroutines, 12, ""}},
	}
	for what, want := range map[string]Verdict{
		"verdict “nothing here”, 5351 refused": {Measured: "1200 (1200–1202) ms, n = 6", Verdict: "PASS"},
		figureHeap:       {Measured: "1025 bytes", Verdict: "FAIL"},
		figureGoroutines: {Measured: "12", Verdict: "PASS"},
	} {
		if v := verdict(t, r, what); v.Measured != want.Measured || v.Verdict != want.Verdict {
			t.Errorf("%s: %+v, want %+v", what, v, want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := &Result{Versions: map[string]string{"m": "v1.2.3"}}
	ten := samples(keyUPnP, ours, 10, 10, 10, 10, 10, 10)
	for i := range ten {
		ten[i].SSDP = 4 * time.Millisecond
	}
	r.Samples = append(append(r.Samples, ten...), samples(keyUPnP, rawUPnPName, 4, 4, 4, 4, 4, -5)...)
	text := Markdown(r, Legend{
		Peers:    []About{{Name: ours, Module: "m"}},
		Sections: []Section{{Key: keyUPnP, Title: "UPnP", Peers: []string{ours, rawUPnPName, upnpcName}, SSDP: true}},
	})
	for _, line := range []string{
		"| goforward | 6 | 0 | 10 (10–10) | 4 | 6 (6–6) |  |  |",
		"| raw UPnP | 6 | 1 | 4 | 0 | 4 | 2.5 | 1.5 |",
		"- raw UPnP: it / failed (1)",
		"| goforward | v1.2.3 | in a process",
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	if strings.Contains(text, upnpcName) {
		t.Error("a row of somebody who took no part")
	}
}

// The seldom take part who are slow.
func TestShare(t *testing.T) {
	b := &bench{Result: Result{Rounds: 30, Spend: time.Minute}}
	for first, want := range map[time.Duration]int{0: 1, time.Second: 1, 2 * time.Second: 1, 4 * time.Second: 2, 9 * time.Second: 5, 20 * time.Second: 10} {
		if got := b.interval(first); got != want {
			t.Errorf("%v: every %d, want %d", first, got, want)
		}
	}
}

// A worker that dies is a sample that failed.
func TestSampleDies(t *testing.T) {
	s := sample(exec.CommandContext(t.Context(), "sh", "-c", "echo panic: at last >&2; echo more >&2; exit 3"), target{Peer: ours})
	if !strings.Contains(s.Err, "exit status 3") || !strings.Contains(s.Err, "panic: at last") {
		t.Errorf("%+v", s)
	}
}

// All that is required is known by its version.
func TestVersions(t *testing.T) {
	v := versions(t.Context())
	for _, p := range peers {
		if p.module != "" && !p.whole && v[p.module] == "" {
			t.Errorf("%s: no version of %s in %v", p.name, p.module, v)
		}
	}
}
