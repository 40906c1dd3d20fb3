package bench

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Downtime is the result of a run of TestDowntime.
type Downtime struct {
	Run
	Limit    time.Duration `json:"limit_ns"` // the time after which a candidate counts as not restored
	Restarts []Restart     `json:"restarts"`
	Traffic  []Traffic     `json:"traffic"`
}

// Restart is one unannounced restart of a router, and what became of the mappings.
type Restart struct {
	Key        string        `json:"key"`
	Router     string        `json:"router"`
	Away       time.Duration `json:"away_ns"` // from the loss of all rules until the daemon is started
	Recoveries []Recovery    `json:"recoveries"`
}

// Recovery is what became of the mapping of one candidate.
type Recovery struct {
	Candidate string           `json:"peer"`
	Network   string           `json:"network"`       // "tcp" or "udp"
	Protocol  string           `json:"way,omitempty"` // empty if the candidate does not report it
	Before    []netip.AddrPort `json:"before"`        // the external endpoints before the restart
	After     []netip.AddrPort `json:"after"`         // the external endpoints at the end
	Held      time.Duration    `json:"held_ns"`       // from the first bytes until the restart
	// Took is the time from the first reply of the router until the first bytes arrive. It
	// is meaningless if Restored is false.
	Took     time.Duration `json:"took_ns"`
	Restored bool          `json:"restored"`
	Err      string        `json:"error,omitempty"` // why there was no mapping before the restart
}

// Traffic is what one process and its router send to each other while mappings are held and
// nothing happens.
type Traffic struct {
	Router    string        `json:"router"`
	Candidate string        `json:"peer"`
	Mappings  int           `json:"mappings"`
	Window    time.Duration `json:"window_ns"` // the duration of the measurement
	Packets   int           `json:"packets"`   // IP packets, both directions, without the router's multicast
	Bytes     int           `json:"bytes"`     // with the IP headers
	Err       string        `json:"error,omitempty"`
}

// maxDowntime is the target for goforward.
const maxDowntime = 45 * time.Second

// Missed returns the restarts after which the candidate was not restored within the limit.
func (d *Downtime) Missed(candidate string, limit time.Duration) []string {
	var out []string
	for _, r := range d.Restarts {
		for _, c := range r.Recoveries {
			if c.Candidate == candidate && (!c.Restored || c.Took > limit) {
				out = append(out, fmt.Sprintf("%s: %s", r.Key, c.text(d.Limit)))
			}
		}
	}
	return out
}

// text describes a recovery in a few words.
func (c Recovery) text(limit time.Duration) string {
	switch {
	case c.Err != "":
		return "no mapping"
	case !c.Restored:
		return "not within " + formatDuration(limit)
	}
	return formatDuration(c.Took)
}

// formatDuration formats a duration in milliseconds below 0.1 s, in tenths of seconds below a
// minute, and else in minutes and seconds.
func formatDuration(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	d = d.Round(time.Second)
	if d%time.Minute == 0 {
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
}

// DowntimeMarkdown returns the section of the report about a run of TestDowntime.
func DowntimeMarkdown(d *Downtime, candidates []CandidateInfo) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
## Downtime after a restart without an announcement

%s, in %v. %d CPUs, Linux %s, %s, load %s at the start, miniupnpd %s.
Seed %d. In each column, all candidates hold a mapping on one router at the same time, each in a process of
its own, with its own defaults. The router loses all mappings and starts again; its announcements are
dropped. Unless the column says otherwise, its epoch starts at 0; before, it was the uptime of this machine.
The time starts when the router replies again, and ends when bytes from outside arrive. The harness tries
every %v, for %s.
`, d.Date.UTC().Format(time.RFC3339), d.Took.Round(time.Second), d.CPUs, d.Kernel, d.Go, d.Load, d.Versions["miniupnpd"], d.Seed, probeInterval, formatDuration(d.Limit))
	d.restartTable(&b, candidates)
	fmt.Fprintf(&b, "\nTarget: goforward is back within %s after every restart", formatDuration(maxDowntime))
	if missed := d.Missed(goforwardName, maxDowntime); missed != nil {
		fmt.Fprintf(&b, ": FAIL (%s).\n", strings.Join(missed, "; "))
	} else {
		fmt.Fprint(&b, ": PASS.\n")
	}
	d.trafficTable(&b, candidates)
	fmt.Fprint(&b, "\n| | version | how it holds the mapping |\n|---|---|---|\n")
	for _, c := range candidates {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", c.Name, d.Versions[c.Module], c.What)
	}
	return b.String()
}

// probeInterval is the pause between two attempts to reach a mapping from outside.
const probeInterval = 500 * time.Millisecond

// restartTable writes one row for each candidate, with a column for each restart.
func (d *Downtime) restartTable(b *strings.Builder, candidates []CandidateInfo) {
	if len(d.Restarts) == 0 {
		return
	}
	fmt.Fprint(b, "\n| | ")
	for _, r := range d.Restarts {
		fmt.Fprintf(b, "%s; away for %s | ", r.Router, formatAway(r.Away))
	}
	fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("--:|", len(d.Restarts)))
	for _, c := range candidates {
		fmt.Fprintf(b, "| %s |", c.Name)
		for _, r := range d.Restarts {
			cell := "–"
			if i := slices.IndexFunc(r.Recoveries, func(x Recovery) bool { return x.Candidate == c.Name }); i >= 0 {
				cell = r.Recoveries[i].text(d.Limit)
			}
			fmt.Fprintf(b, " %s |", cell)
		}
		fmt.Fprintln(b)
	}
	held := d.held()
	fmt.Fprintf(b, "\nThe mappings were %s to %s old at the restart. –: the candidate does not support the protocol, or not on Linux.\n",
		formatDuration(held[0]), formatDuration(held[1]))
}

func formatAway(d time.Duration) string {
	if d%time.Second != 0 {
		return d.String()
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

// held returns the shortest and the longest age of a mapping at a restart.
func (d *Downtime) held() (out [2]time.Duration) {
	for _, r := range d.Restarts {
		for _, c := range r.Recoveries {
			if c.Err != "" {
				continue
			}
			if out[0] == 0 || c.Held < out[0] {
				out[0] = c.Held
			}
			out[1] = max(out[1], c.Held)
		}
	}
	return out
}

// trafficTable writes the traffic of idle mappings, scaled to an hour.
func (d *Downtime) trafficTable(b *strings.Builder, candidates []CandidateInfo) {
	if len(d.Traffic) == 0 {
		return
	}
	fmt.Fprintf(b, `
### The traffic of idle mappings

All IP packets between one process and its router, both directions, with IP headers, without multicast from
the router. Nothing happens in this time: the rows of goforward are its periodic checks; renewals are extra,
one exchange for each mapping and half of its lifetime. Measured for the time in the last column and scaled to an hour.

| | router | mappings | packets each hour | bytes each hour | measured for |
|---|---|--:|--:|--:|--:|
`)
	for _, c := range candidates {
		for _, x := range d.Traffic {
			if x.Candidate != c.Name {
				continue
			}
			packets, size := "no mapping", ""
			if x.Err == "" {
				hours := x.Window.Hours()
				packets, size = fmt.Sprintf("%.0f", float64(x.Packets)/hours), fmt.Sprintf("%.0f", float64(x.Bytes)/hours)
			}
			fmt.Fprintf(b, "| %s | %s | %d | %s | %s | %s |\n", x.Candidate, x.Router, x.Mappings, packets, size, formatDuration(x.Window))
		}
	}
}
