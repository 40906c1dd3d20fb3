package bench

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// About says who was measured.
type About struct {
	Name, What string
	Module     string // whose version is told; empty: none
	Against    string // whom of goforward's its ratio compares
	Whole      bool   // a whole process, not a call in one
}

// Section is a table of the report.
type Section struct {
	Key, Title string
	Nothing    bool // what is measured is how long it takes to give up
	Peers      []string
	SSDP       bool // devices are searched for
}

// Legend is what a Result does not tell itself.
type Legend struct {
	Peers    []About
	Sections []Section
}

func (l Legend) about(name string) About {
	for _, a := range l.Peers {
		if a.Name == name {
			return a
		}
	}
	return About{Name: name}
}

// Markdown is the report of a run.
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
			fmt.Fprintf(&b, "| %s | %s |\n", f.Name, strings.TrimSpace(digits(f.Value)+" "+f.Unit))
		}
	}
	who(&b, r, l)
	return b.String()
}

func heading(b *strings.Builder, r *Result) {
	fmt.Fprintf(b, `# Side by side

%s, in %v. %s, %d CPUs, Linux %s, %s, load %s when it began.
Seed %d, %d rounds; in each, everybody is asked once, in an order drawn from the seed.
Who would need more than %v for all rounds of a scenario takes part in every second,
third … only: n is how often. Times are in milliseconds: the median, and in brackets the interval
that holds the true median with 95 %%, by the binomial distribution; no brackets: fewer than six values.
Ratios are medians of those within a round. A sample that takes longer than 20 s has failed.
`, r.Date.UTC().Format(time.RFC3339), r.Took.Round(time.Second), r.CPU, r.CPUs, r.Kernel, r.Go, r.Load, r.Seed, r.Rounds, r.Spend)
}

func section(b *strings.Builder, r *Result, l Legend, s Section) {
	var rows []string
	for _, name := range s.Peers {
		if samples := r.of(s.Key, name); len(samples) > 0 {
			rows = append(rows, row(r, l, s, name, samples))
		}
	}
	if rows == nil {
		return
	}
	result, failed := "ms", "failed"
	if s.Nothing {
		result, failed = "ms until it gave up", "never"
	}
	fmt.Fprintf(b, "\n## %s\n\n| | n | %s | %s | ", s.Title, failed, result)
	if s.SSDP {
		fmt.Fprint(b, "the router's SSDP delay | without it | ")
	}
	fmt.Fprint(b, "goforward's ÷ its |")
	if s.SSDP {
		fmt.Fprint(b, " the same without SSDP delays |")
	}
	fmt.Fprint(b, "\n|---|--:|--:|--:|--:|")
	if s.SSDP {
		fmt.Fprint(b, "--:|--:|--:|")
	}
	fmt.Fprintln(b)
	for _, row := range rows {
		fmt.Fprintln(b, row)
	}
	why(b, s, r)
}

func row(r *Result, l Legend, s Section, name string, samples []Sample) string {
	failed := 0
	for _, x := range samples {
		if (x.Err != "") != s.Nothing || s.Nothing && x.Took >= giveUp {
			failed++
		}
	}
	cells := []string{name, fmt.Sprint(len(samples)), fmt.Sprint(failed), interval(r.summary(s.Key, name, s.Nothing, took))}
	against := r.reference(s.Key, l.about(name).Against)
	ratio := func(what measure) string {
		if against == name {
			return ""
		}
		return interval(r.ratio(s.Key, against, name, s.Nothing, what))
	}
	if s.SSDP {
		delay := r.summary(s.Key, name, s.Nothing, func(x Sample) float64 { return ms(x.SSDP) })
		cells = append(cells, digits(delay.Median), interval(r.summary(s.Key, name, s.Nothing, own)))
	}
	cells = append(cells, ratio(took))
	if s.SSDP {
		cells = append(cells, ratio(own))
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

// reference is whom of goforward's somebody is compared with: the one named, if
// that took part.
func (r *Result) reference(scenario, named string) string {
	for _, name := range []string{named, ours, oursTold} {
		if name != "" && len(r.of(scenario, name)) > 0 {
			return name
		}
	}
	return ""
}

// giveUp is the watchdog, beyond which nobody is waited for.
const giveUp = 20 * time.Second

// why tells of failures, each reason once.
func why(b *strings.Builder, s Section, r *Result) {
	if s.Nothing {
		return
	}
	seen := map[string]int{}
	for _, name := range s.Peers {
		for _, x := range r.of(s.Key, name) {
			if x.Err != "" {
				seen[name+": "+short(x.Err)]++
			}
		}
	}
	if len(seen) > 0 {
		fmt.Fprint(b, "\nFailures:\n\n")
	}
	for _, text := range slices.Sorted(maps.Keys(seen)) {
		fmt.Fprintf(b, "- %s (%d)\n", text, seen[text])
	}
}

// short is an error on one line.
func short(text string) string {
	const most = 160
	text = strings.Join(strings.Fields(strings.ReplaceAll(text, "|", "/")), " ")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

// interval is a median with its confidence interval.
func interval(s Summary) string {
	switch {
	case s.N == 0:
		return "–"
	case !s.Interval:
		return digits(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", digits(s.Median), digits(s.Low), digits(s.High))
}

// digits has three of them, or all of an integer.
func digits(v float64) string {
	switch {
	case v == math.Trunc(v) || v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func who(b *strings.Builder, r *Result, l Legend) {
	fmt.Fprintf(b, "\n## Who\n\n| | version | measured |\n|---|---|---|\n")
	for _, a := range l.Peers {
		what := "in a process that does nothing else: " + a.What
		if a.Whole {
			what = "a whole process: `" + a.What + "`"
		}
		version := r.Versions[a.Module]
		if a.Module == "" {
			version = "raw sockets, no library"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", a.Name, version, what)
	}
	fmt.Fprintf(b, "\nThe router is miniupnpd %s on nftables, in network namespaces; tables of gatewaytest say so.\n", r.Versions["miniupnpd"])
}
