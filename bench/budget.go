package bench

import (
	"fmt"
	"strings"
	"time"
)

// Verdict is the result of one budget.
type Verdict struct {
	What, Target, Measured string
	// Verdict is PASS if the whole confidence interval meets the target, FAIL if no part
	// of it does, and open otherwise. If there is no interval, the median decides, and
	// Verdict states that there were few values. It is – if nothing was measured.
	Verdict string
}

// Budgets compares a run with the targets of this project.
func Budgets(r *Result) []Verdict {
	const noLimit = 1.0
	var out []Verdict
	atMost := func(what, target string, s Summary, limit float64, unit string) {
		out = append(out, Verdict{what, target, measured(s, unit), decide(s, limit)})
	}
	for _, key := range []string{keyNATPMP, keyAll} {
		atMost("cold Enable over NAT-PMP, "+key, "no slower than go-ethereum", r.ratio(key, goforwardName, gethName, false, took), noLimit, "×")
		atMost("the same", "≤ raw NAT-PMP + 1 ms", r.excess(key, goforwardName, rawNATPMPName, took), 1, "ms more")
	}
	atMost("the same on gatewaytest, with a configured gateway", "≤ go-nat-pmp + 1 ms", r.excess(keyGateway, goforwardGatewayName, goNATPMPName, took), 1, "ms more")
	atMost("cold Enable, PCP only", "≤ raw PCP + 12 ms", r.excess(keyPCP, goforwardName, rawPCPName, took), 12, "ms more")
	atMost("the same", "≤ 0.1 × tailscale", r.ratio(keyPCP, goforwardName, tailscaleName, false, took), 0.1, "×")
	for _, key := range []string{keyUPnP, keyUPnPSilent} {
		limit := map[string]float64{keyUPnP: 5, keyUPnPSilent: 15}[key]
		atMost("cold Enable, "+key, fmt.Sprintf("≤ raw UPnP + %v ms", limit), r.excess(key, goforwardName, rawUPnPName, took), limit, "ms more")
		atMost("the same", "≤ 0.5 × tailscale", r.ratio(key, goforwardName, tailscaleName, false, took), 0.5, "×")
	}
	remembered := "goforward map, whole process, the protocol remembered, "
	atMost(remembered+keyNATPMP, "≤ 2.2 × natpmpc -g", r.ratio(keyNATPMP, goforwardMapRememberedName, natpmpcName, false, took), 2.2, "×")
	atMost(remembered+keyPCP, "≤ raw PCP + 4 ms", r.excess(keyPCP, goforwardMapRememberedName, rawPCPName, took), 4, "ms more")
	atMost(remembered+keyUPnP, "≤ raw UPnP + 4 ms, without SSDP delays", r.excess(keyUPnP, goforwardMapRememberedName, rawUPnPName, withoutSSDP), 4, "ms more") // only raw UPnP searches
	atMost("no gateway found, 5351 silent", "≤ DiscoveryTimeout, 3 s, plus 50 ms", r.summary(keySilent, goforwardName, true, took), ms(3050*time.Millisecond), "ms")
	atMost("no gateway found, 5351 refused", "≤ 1.3 s", r.summary(keyRefused, goforwardName, true, took), ms(1300*time.Millisecond), "ms")
	out = append(out,
		figureAtMost(r, figureGoroutines, "≤ 5", 5),
		figureAtMost(r, figureHeap, "≤ 1.5 KiB", 1536),
		figureAtMost(r, figureBurst, "≤ 53: three times the even rate, plus 20", 53),
		figureAtMost(r, figureAllocs, "0", 0))
	atMost("first mapping restored after an announced restart", "≤ 1 s", r.summary(keyRestart, goforwardName, false, took), ms(time.Second), "ms")
	for _, c := range closeComparisons {
		for _, key := range []string{c.key, c.slowKey} {
			atMost(key, "≤ 3 × "+c.raw, r.ratio(key, goforwardCloseName, c.raw, false, took), 3, "×")
			out = append(out, r.noFailures(key+", all deleted", key, goforwardCloseName))
		}
	}
	atMost("processor time of a warm pair, map and unmap", "≤ 2 × go-nat-pmp", r.ratio(keyPairCPU, goforwardName, goNATPMPName, false, took), 2, "×")
	atMost("the same, with GOMAXPROCS=1", "≤ 2 × go-nat-pmp", r.ratio(keyPairCPUOne, goforwardName, goNATPMPName, false, took), 2, "×")
	for _, list := range []struct {
		key, what string
		limit     float64
	}{
		{keyTable100, "table of 100 entries on a real router, all of them UDP", 0.2},
		{keyTableMixed, "table of 100 entries on a real router, TCP and UDP in turns", 0.2},
		{keyTable140, "table of 140 entries on a real router", 1.05},
		{keyTableSlow, "table of 1 000 entries on gatewaytest, replies after 5 ms", 0.5},
	} {
		atMost(list.what, "≤ "+formatNumber(list.limit)+" × goupnp", r.ratio(list.key, goforwardName, goupnpName, false, took), list.limit, "×")
	}
	return append(out, figureAtMost(r, figureOneliner, "≤ 8 MiB", 8), figureAtMost(r, figureBinary, "≤ 16 MiB", 16))
}

// noFailures is the budget of a candidate that must not fail.
func (r *Result) noFailures(what, scenario, candidate string) Verdict {
	samples := r.of(scenario, candidate)
	if len(samples) == 0 {
		return Verdict{what, "in every round", "–", "–"}
	}
	failed := 0
	for _, s := range samples {
		if s.Err != "" {
			failed++
		}
	}
	v := Verdict{what, "in every round", fmt.Sprintf("%d of %d", len(samples)-failed, len(samples)), "PASS"}
	if failed > 0 {
		v.Verdict = "FAIL"
	}
	return v
}

// measured formats a summary for the table of budgets.
func measured(s Summary, unit string) string {
	if s.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%s %s, n = %d", interval(s), unit, s.N)
}

// decide compares a summary with its limit.
func decide(s Summary, limit float64) string {
	passed := map[bool]string{true: "PASS", false: "FAIL"}
	switch {
	case s.N == 0:
		return "–"
	case !s.Interval:
		return passed[s.Median <= limit] + ", few values"
	case s.High <= limit:
		return passed[true]
	case s.Low > limit:
		return passed[false]
	}
	return "open"
}

// figureAtMost compares a figure with its limit.
func figureAtMost(r *Result, name, target string, limit float64) Verdict {
	f, ok := r.figure(name)
	if !ok {
		return Verdict{name, target, "–", "–"}
	}
	v := Verdict{name, target, strings.TrimSpace(formatNumber(f.Value) + " " + f.Unit), "PASS"}
	if f.Value > limit {
		v.Verdict = "FAIL"
	}
	return v
}
