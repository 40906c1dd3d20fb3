package bench

import (
	"fmt"
	"strings"
	"time"
)

// Verdict says whether a budget was kept.
type Verdict struct {
	What, Target, Measured string
	// Verdict is PASS if the whole confidence interval keeps the target, FAIL if none
	// of it does, and open if it is between. If there is no interval, the median
	// decides, and Verdict says so. It is – if nothing was measured.
	Verdict string
}

// Budgets compares a run with what the project has promised itself.
func Budgets(r *Result) []Verdict {
	const noLimit = 1.0
	var out []Verdict
	most := func(what, target string, s Summary, limit float64, unit string) {
		out = append(out, Verdict{what, target, measured(s, unit), decide(s, limit)})
	}
	for _, key := range []string{keyNATPMP, keyAll} {
		most("cold Enable by NAT-PMP, "+key, "no slower than go-ethereum", r.ratio(key, ours, gethName, false, took), noLimit, "×")
	}
	most("the same on gatewaytest, gateway told", "≤ go-nat-pmp + 1 ms", r.excess(keyGateway, oursTold, goNATPMPName, took), 1, "ms more")
	most("cold Enable, PCP only", "faster than tailscale", r.ratio(keyPCP, ours, tailscaleName, false, took), noLimit, "×")
	for _, key := range []string{keyUPnP, keyUPnPSilent} {
		most("cold Enable, "+key, "faster than tailscale", r.ratio(key, ours, tailscaleName, false, took), noLimit, "×")
		most("the same, SSDP delay apart", "≤ 1.25 × raw, with all questions", r.ratio(key, ours, rawCarefulName, false, own), 1.25, "×")
		most("the same, SSDP delay apart", "≤ 1.25 × raw, with the least", r.ratio(key, ours, rawUPnPName, false, own), 1.25, "×")
	}
	most("verdict “nothing here”, 5351 silent", "≤ Wait, 3 s, and 50 ms to say so", r.summary(keySilent, ours, true, took), ms(3050*time.Millisecond), "ms")
	most("verdict “nothing here”, 5351 refused", "≤ 1.3 s", r.summary(keyRefused, ours, true, took), ms(1300*time.Millisecond), "ms")
	out = append(out,
		figureAtMost(r, figureGoroutines, "≤ 12", 12),
		figureAtMost(r, figureHeap, "≤ 1.5 KiB", 1536),
		figureAtMost(r, figureBurst, "≤ 53: three times as many as if even, and 20", 53),
		figureAtMost(r, figureAllocs, "0", 0))
	most("first mapping back after an announced restart", "≤ 1 s", r.summary(keyRestart, ours, false, took), ms(time.Second), "ms")
	for _, key := range []string{keyNATPMP, keyAll} {
		most("goforward map -g, whole process, "+key, "≤ 2 × natpmpc -g", r.ratio(key, oursTool, natpmpcName, false, took), 2, "×")
	}
	return append(out, figureAtMost(r, figureBinary, "≤ 10 MiB", 10))
}

func measured(s Summary, unit string) string {
	if s.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%s %s, n = %d", interval(s), unit, s.N)
}

func decide(s Summary, limit float64) string {
	passed := map[bool]string{true: "PASS", false: "FAIL"}
	switch {
	case s.N == 0:
		return "–"
	case !s.Interval:
		return passed[s.Median <= limit] + ", by few values"
	case s.High <= limit:
		return passed[true]
	case s.Low > limit:
		return passed[false]
	}
	return "open"
}

func figureAtMost(r *Result, name, target string, limit float64) Verdict {
	f, ok := r.figure(name)
	if !ok {
		return Verdict{name, target, "–", "–"}
	}
	v := Verdict{name, target, strings.TrimSpace(digits(f.Value) + " " + f.Unit), "PASS"}
	if f.Value > limit {
		v.Verdict = "FAIL"
	}
	return v
}
