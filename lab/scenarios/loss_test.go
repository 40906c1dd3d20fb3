package scenarios

import (
	"testing"
	"time"

	"github.com/natforward/goforward/lab"
)

// Every third packet to and from the router is lost, for ten renewals and more:
// a mapping may be late to be renewed, but not lost.
func TestLoss(t *testing.T) {
	t.Parallel()
	const renewalsWanted = 10
	for backend, c := range map[string]struct {
		router lab.Router
		lease  time.Duration
		spare  int // of 100 probes, those that may fail
	}{
		"natpmp": {lab.Router{NoPCP: true, NoUPnP: true}, 12 * time.Second, 10},
		"pcp":    {pcpOnly, 12 * time.Second, 10},
		"upnp":   {upnpOnly, 20 * time.Second, 30}, // of TCP, a lost packet or two make an exchange too late,
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "loss: 30 % each way, ten renewals, "+backend)
			home := lab.Home(t, c.router)
			f := newForwarder(t, home.Lan, config{Lifetime: c.lease})
			steady := steadily(t, home, f)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			m := f.enable(tcp(8080))
			home.Reaches(t, echo, m.External)
			// Only what is said to the router itself: probes go through it untouched.
			home.Router.Rule(t, "input", `iifname "lan0" numgen random mod 100 < 30 drop`)
			home.Router.Rule(t, "output", `oifname "lan0" numgen random mod 100 < 30 drop`)
			before := m.now().Expires
			seen := 0
			unreachable, probes := 0, 0
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for begin := time.Now(); seen < renewalsWanted && time.Since(begin) < 12*c.lease; {
				<-tick.C
				probes++
				if !answered(t, home.Wan, echo, m.External) && answered(t, home.Wan, steady.echo, steady.external) {
					unreachable++
				}
				if s := m.now(); s.Expires.After(before) {
					before = s.Expires
					seen++
				}
			}
			t.Logf("%d renewals seen; unreachable at %d of %d probes, one a second", seen, unreachable, probes)
			if seen < renewalsWanted {
				t.Errorf("%d renewals seen, want %d", seen, renewalsWanted)
			}
			if unreachable*100 > c.spare*probes {
				t.Errorf("unreachable at %d of %d probes", unreachable, probes)
			}
		})
	}
}
