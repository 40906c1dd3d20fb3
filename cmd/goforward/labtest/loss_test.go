package labtest

import (
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// Every third packet to and from the router is lost, for ten renewals and more:
// a mapping may be late to be renewed, but not lost.
//
// The cable of the host loses exactly one of every three packets each way. A seed
// selects which one, so the outcome does not depend on chance:
//
//   - At most two packets in a row are lost in one direction. So at most five
//     requests in a row get no answer: for instance, two are lost, the answers to
//     the next two are lost, and the fifth is lost. The sixth is answered.
//   - NAT-PMP and PCP repeat a request after 250 ms, 500 ms and then each second,
//     PCP with waits that are up to a tenth longer. They send the sixth request
//     4.2 s after the first, at the latest.
//   - A renewal begins at five eighths of the remaining lifetime, at the latest. Of
//     16 s, NAT-PMP may have spent 2 s on the external address. So at least
//     (16 s - 2 s) * 3/8 = 5.2 s remain, and no lease of these two ends before it
//     is renewed.
//   - UPnP has no such bound: a renewal takes several TCP connections, whose packets
//     the kernel repeats after 200 ms, 400 ms and so on. So it may lose a lease, which
//     spare allows.
//
// What spare allows otherwise are probes that a busy machine loses.
func TestLoss(t *testing.T) {
	t.Parallel()
	const renewalsWanted = 10
	for backend, c := range map[string]struct {
		router lab.Router
		lease  time.Duration
		spare  int // of 100 probes, those that may fail
	}{
		"natpmp": {lab.Router{NoPCP: true, NoUPnP: true}, 16 * time.Second, 5},
		"pcp":    {pcpOnly, 16 * time.Second, 5},
		"upnp":   {upnpOnly, 20 * time.Second, 15}, // with six seeds on a busy machine, one of 130 failed at most
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "loss: 30 % each way, ten renewals, "+backend)
			home := lab.Home(t, c.router)
			host, cable := home.JoinByCable("wired", "192.168.77.3/24")
			home.Lan = host
			f := newForwarder(t, home.Lan, config{Lifetime: c.lease})
			steady := steadily(t, home, f)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			m := f.enable(tcp(8080))
			home.Reaches(t, echo, m.External)
			// Only what is said to the router itself: probes go through it untouched.
			cable.Set(lab.Line{OneIn: 3, Seed: seed(t), Peer: home.Gateway})
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
			// Ten renewals are at least ten packets each way.
			if fromHost, toHost := cable.Lost(); fromHost < 3 || toHost < 3 {
				t.Errorf("the cable lost %d packets of the host and %d to it: it lost too few", fromHost, toHost)
			}
			if unreachable*100 > c.spare*probes {
				t.Errorf("unreachable at %d of %d probes", unreachable, probes)
			}
		})
	}
}
