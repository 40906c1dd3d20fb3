package bench

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDowntimeMarkdown(t *testing.T) {
	d := &Downtime{
		Run: Run{Versions: map[string]string{"m": "v1.2.3"}}, Limit: 20 * time.Minute,
		Restarts: []Restart{
			{Key: "a", Router: "all", Recoveries: []Recovery{
				{Candidate: goforwardName, Restored: true, Took: 12345 * time.Millisecond, Held: 40 * time.Second},
				{Candidate: gethName, Restored: true, Took: 483 * time.Second, Held: 50 * time.Second},
				{Candidate: tailscaleName, Held: 60 * time.Second},
			}},
			{Key: "b", Router: "PCP", Away: 90 * time.Second, Recoveries: []Recovery{
				{Candidate: goforwardName, Restored: true, Took: 46 * time.Second, Held: 40 * time.Second},
				{Candidate: tailscaleName, Restored: true, Took: 9 * time.Millisecond, Held: 40 * time.Second},
				{Candidate: gethName, Err: "none"},
			}},
			{Key: "c", Router: "NAT-PMP"},
		},
		Traffic: []Traffic{
			{Router: "PCP", Candidate: goforwardName, Mappings: 50, Window: 2 * time.Minute, Packets: 8, Bytes: 500},
			{Router: "PCP", Candidate: gethName, Mappings: 1, Window: time.Minute, Err: "none"},
		},
	}
	text := DowntimeMarkdown(d, []CandidateInfo{{Name: goforwardName, Module: "m", What: "how"}, {Name: gethName}, {Name: tailscaleName}})
	for _, line := range []string{
		"| | all; away for 0 s | PCP; away for 90 s | NAT-PMP; away for 0 s |",
		"| goforward | 12.3 s | 46.0 s | – |",
		"| go-ethereum | 8 min 3 s | no mapping |",
		"| tailscale | not within 20 min | 9 ms |",
		"The mappings were 40.0 s to 1 min old",
		"Target: goforward is back within 45.0 s after every restart: FAIL (b: 46.0 s).",
		"| goforward | PCP | 50 | 240 | 15000 | 2 min |",
		"| go-ethereum | PCP | 1 | no mapping |  | 1 min |",
		"| goforward | v1.2.3 | how |",
	} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	if got := d.Missed(tailscaleName, maxDowntime); !slices.Equal(got, []string{"a: not within 20 min"}) {
		t.Error(got)
	}
	if got := d.Missed(goforwardName, time.Minute); got != nil {
		t.Error(got)
	}
}
