package bench

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// CandidateInfo describes a candidate.
type CandidateInfo struct {
	Name, What   string // What lists the measured calls
	Module       string // the module for the version; empty: none
	ComparedWith string // the candidate of goforward in the ratio
	Process      bool   // a whole process is measured, and not calls in a process
}

// Section describes a table of the report.
type Section struct {
	Key, Title string
	NoGateway  bool // the time until the error is measured
	Candidates []string
	SSDP       bool // the candidates search for devices
}

// Legend describes the candidates and the tables, which a Result only names.
type Legend struct {
	Candidates []CandidateInfo
	Sections   []Section
}

// about returns the description of the named candidate.
func (l Legend) about(name string) CandidateInfo {
	for _, a := range l.Candidates {
		if a.Name == name {
			return a
		}
	}
	return CandidateInfo{Name: name}
}

// Markdown returns the report of a run.
func Markdown(r *Result, l Legend) string {
	var b strings.Builder
	heading(&b, r)
	fmt.Fprintf(&b, "\n## Budgets\n\n| what | target | measured | |\n|---|---|---|---|\n")
	for _, v := range Budgets(r) {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", v.What, v.Target, v.Measured, v.Verdict)
	}
	for _, s := range l.Sections {
		section(&b, r, l, s)
	}
	if len(r.Figures) > 0 {
		fmt.Fprintf(&b, "\n## Figures\n\n| | |\n|---|--:|\n")
		for _, f := range r.Figures {
			fmt.Fprintf(&b, "| %s | %s |\n", f.Name, strings.TrimSpace(formatNumber(f.Value)+" "+f.Unit))
		}
	}
	candidateTable(&b, r, l)
	return b.String()
}

// heading writes the title and the conditions of the run.
func heading(b *strings.Builder, r *Result) {
	fmt.Fprintf(b, `# Benchmark results

%s, in %v. %s, %d CPUs, Linux %s, %s, load %s at the start.
Seed %d, %d rounds. Each round runs every candidate once, in an order drawn from the seed.
A candidate that would need more than %v for all rounds of a scenario runs only in every second,
third … round; n is the number of its samples. Times are in milliseconds: the median, and in brackets
the interval that contains the true median with a probability of 95 %%, by the binomial distribution.
There are no brackets for fewer than six values. Ratios are medians of the ratios within a round.
A sample that takes longer than 20 s has failed.
`, r.Date.UTC().Format(time.RFC3339), r.Took.Round(time.Second), r.CPU, r.CPUs, r.Kernel, r.Go, r.Load, r.Seed, r.Rounds, r.Spend)
}

// section writes one table, unless it has no samples.
func section(b *strings.Builder, r *Result, l Legend, s Section) {
	var rows []string
	for _, name := range s.Candidates {
		if samples := r.of(s.Key, name); len(samples) > 0 {
			rows = append(rows, row(r, l, s, name, samples))
		}
	}
	if rows == nil {
		return
	}
	result, failed := "ms", "failed"
	if s.NoGateway {
		result, failed = "ms until the error", "no error in 20 s"
	}
	fmt.Fprintf(b, "\n## %s\n\n| | n | %s | %s | ", s.Title, failed, result)
	if s.SSDP {
		fmt.Fprint(b, "SSDP delay of the router | ms without this delay | ")
	}
	fmt.Fprint(b, "goforward ÷ candidate |")
	if s.SSDP {
		fmt.Fprint(b, " goforward ÷ candidate, without SSDP delays |")
	}
	fmt.Fprint(b, "\n|---|--:|--:|--:|--:|")
	if s.SSDP {
		fmt.Fprint(b, "--:|--:|--:|")
	}
	fmt.Fprintln(b)
	for _, row := range rows {
		fmt.Fprintln(b, row)
	}
	failureList(b, s, r)
}

// row returns the row of one candidate.
func row(r *Result, l Legend, s Section, name string, samples []Sample) string {
	failed := 0
	for _, x := range samples {
		if (x.Err != "") != s.NoGateway || s.NoGateway && x.Took >= sampleLimit {
			failed++
		}
	}
	cells := []string{name, fmt.Sprint(len(samples)), fmt.Sprint(failed), interval(r.summary(s.Key, name, s.NoGateway, took))}
	comparedWith := r.reference(s.Key, l.about(name).ComparedWith)
	ratio := func(what measure) string {
		if comparedWith == name {
			return ""
		}
		return interval(r.ratio(s.Key, comparedWith, name, s.NoGateway, what))
	}
	if s.SSDP {
		delay := r.summary(s.Key, name, s.NoGateway, func(x Sample) float64 { return ms(x.SSDP) })
		cells = append(cells, formatNumber(delay.Median), interval(r.summary(s.Key, name, s.NoGateway, withoutSSDP)))
	}
	cells = append(cells, ratio(took))
	if s.SSDP {
		cells = append(cells, ratio(withoutSSDP))
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

// reference returns the candidate of goforward with which another candidate is compared:
// the named one if it took part in the scenario, or else the first that did.
func (r *Result) reference(scenario, named string) string {
	for _, name := range []string{named, goforwardName, goforwardGatewayName} {
		if name != "" && len(r.of(scenario, name)) > 0 {
			return name
		}
	}
	return ""
}

// sampleLimit is the time after which a sample has failed. It is equal to watchdog.
const sampleLimit = 20 * time.Second

// failureList writes the reasons of the failures, each with its number.
func failureList(b *strings.Builder, s Section, r *Result) {
	if s.NoGateway {
		return
	}
	failures := map[string]int{}
	for _, name := range s.Candidates {
		for _, x := range r.of(s.Key, name) {
			if x.Err != "" {
				failures[name+": "+oneLine(x.Err)]++
			}
		}
	}
	if len(failures) > 0 {
		fmt.Fprint(b, "\nFailures:\n\n")
	}
	for _, text := range slices.Sorted(maps.Keys(failures)) {
		fmt.Fprintf(b, "- %s (%d)\n", text, failures[text])
	}
}

// oneLine returns an error text on one line, and truncates it if it is long.
func oneLine(text string) string {
	const maxRunes = 160
	text = strings.Join(strings.Fields(strings.ReplaceAll(text, "|", "/")), " ")
	if runes := []rune(text); len(runes) > maxRunes {
		return string(runes[:maxRunes]) + "…"
	}
	return text
}

// interval formats a median with its confidence interval.
func interval(s Summary) string {
	switch {
	case s.N == 0:
		return "–"
	case !s.Interval:
		return formatNumber(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", formatNumber(s.Median), formatNumber(s.Low), formatNumber(s.High))
}

// formatNumber formats a number with three significant digits, or all digits of an integer.
func formatNumber(v float64) string {
	switch {
	case v == math.Trunc(v) || v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// candidateTable writes the table of the candidates.
func candidateTable(b *strings.Builder, r *Result, l Legend) {
	fmt.Fprintf(b, "\n## Candidates\n\n| | version | measured |\n|---|---|---|\n")
	for _, a := range l.Candidates {
		what := "calls in a process of its own: " + a.What
		if a.Process {
			what = "a whole process: `" + a.What + "`"
		}
		version := r.Versions[a.Module]
		if a.Module == "" {
			version = "raw sockets, no library"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", a.Name, version, what)
	}
	fmt.Fprintf(b, "\nThe router is miniupnpd %s on nftables, in network namespaces, except in the tables of gatewaytest.\n", r.Versions["miniupnpd"])
}
