package labtest

import (
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// A mapping is closed while the answer that grants it is still on its way: it
// must go all the same, or else be said to be left.
func TestFaultCloseUnanswered(t *testing.T) {
	t.Parallel()
	for backend, delay := range map[string]time.Duration{
		"natpmp": 1500 * time.Millisecond,
		"pcp":    400 * time.Millisecond, // or refusals of an option come too late
		"upnp":   800 * time.Millisecond, // several times
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "fault: closed before the answer that grants it is here, "+backend)
			home := lab.Home(t, lab.Router{})
			l := lanes(t, home, 1)[0]
			f := l.forwarder(config{Order: []string{backend}, Lifetime: time.Hour})
			f.externalIP() // the gateway is known
			l.cable.Set(lab.Line{Delay: delay})
			m := f.enable(udp(firstPort), background)
			until(t, patience, "no entry", func() bool { return len(ours(home.Rules(t))) > 0 })
			if m.now().External.IsValid() {
				t.Log("the answer was faster than the look at the router")
			}
			got := l.try(call{Op: "close mapping", Mapping: m.n})
			t.Logf("Close took %v and said: %v", got.Took, got.Failure.err())
			gone := eventually(5*time.Second, func() bool { return len(ours(home.Rules(t))) == 0 })
			if got.Failure == nil && !gone {
				t.Errorf("Close said that all is well, and the entry stays for its lifetime of an hour: %q", home.Rules(t))
			}
		})
	}
}
