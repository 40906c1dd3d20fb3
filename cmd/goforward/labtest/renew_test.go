package labtest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

const shortLease = 6 * time.Second

// longestGap is how long bytes may fail to arrive at a renewal: this router deletes
// the old entry before it makes the new one, a millisecond later. On a machine that is
// busy with other things, a second was seen.
const maxGap = 2 * time.Second

// target is where bytes are to arrive.
type echoTarget struct {
	echo     lab.Echo
	external netip.AddrPort
}

// stays asks whether bytes arrive until the time is over, and returns the
// longest while for which they did not, although they did at the steady target:
// a machine that is too busy to carry anything says nothing of a mapping.
func measureGap(t *testing.T, home *lab.HomeNet, watched, reference echoTarget, done <-chan struct{}) (gap time.Duration) {
	t.Helper()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var unreachable time.Duration // in a row
	for last := time.Now(); ; {
		arrived := isReachable(t, home.Wan, watched.echo, watched.external) || !isReachable(t, home.Wan, reference.echo, reference.external)
		now := time.Now()
		if arrived {
			unreachable = 0
		} else { // however late the machine is with its probes
			unreachable += min(now.Sub(last), probeTimeout+pollInterval)
		}
		last = now
		gap = max(gap, unreachable)
		select {
		case <-done:
			return gap
		case <-tick.C:
		}
	}
}

const probeTimeout = 200 * time.Millisecond

// answered asks once, and does not wait long.
func isReachable(t *testing.T, from *lab.Host, echo lab.Echo, to netip.AddrPort) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), probeTimeout)
	defer cancel()
	conn, err := from.Dial(ctx, echo.Network, to.String())
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(probeTimeout))
	if _, err := conn.Write([]byte("here?")); err != nil {
		return false
	}
	buf := make([]byte, len(echo.Token))
	n, _ := conn.Read(buf)
	return string(buf[:n]) == echo.Token
}

// renewals is how long a mapping of the short lease is watched: it outlives its
// lifetime three times.
const watchDuration = 3*shortLease + shortLease/4

// steadily has a mapping that needs no renewal, to tell a busy machine from a
// mapping that is not there. It is on the router's table until the end.
func enableReference(t *testing.T, home *lab.HomeNet, f *remoteForwarder, opts ...option) echoTarget {
	t.Helper()
	m := f.enable(append(opts, tcp(8082), lifetime(time.Hour), once)...)
	f.wantEvent(forward.EventMapped)
	return echoTarget{home.Lan.Echo(t, "tcp", m.Internal.String()), m.External}
}

// watched starts stays for each echo, and returns what waits for its end and
// wants no gap that is too long.
func watchReachability(t *testing.T, home *lab.HomeNet, external netip.AddrPort, reference echoTarget, during time.Duration, echoes ...lab.Echo) (wait func()) {
	t.Helper()
	done := make(chan struct{})
	time.AfterFunc(during, func() { close(done) })
	gaps := make(chan time.Duration)
	for _, echo := range echoes {
		go func() { gaps <- measureGap(t, home, echoTarget{echo, external}, reference, done) }()
	}
	return func() {
		t.Helper()
		for range echoes {
			gap := <-gaps
			t.Logf("the longest gap: %v", gap)
			if gap > maxGap {
				t.Errorf("no bytes arrived for %v", gap)
			}
		}
	}
}

// ends waits for the end of a mapping that nobody renews, which shows that this
// router means what it says.
func waitForExpiry(t *testing.T, home *lab.HomeNet, echo lab.Echo, m *mapping) {
	t.Helper()
	waitUnreachable(t, home, echo, m.External, 2*shortLease)
	lasted := time.Since(m.Grants[0].Granted)
	t.Logf("the mapping that is not renewed went after %v", lasted)
	if lasted < shortLease-time.Second {
		t.Errorf("the mapping that is not renewed went after %v, want %v", lasted, shortLease)
	}
}

// Bytes arrive all the time while a mapping outlives its lifetime three times.
// One that is not renewed goes when its lifetime has passed.
func testRenewal(t *testing.T, router lab.Router, backend string) {
	home := lab.Home(t, router)
	f := newForwarder(t, home.Lan, config{Lifetime: shortLease})
	reference := enableReference(t, home, f)
	renewed, unrenewed := f.enable(both(8080)), f.enable(tcp(8081), once)
	f.wantEvent(forward.EventMapped)
	f.wantEvent(forward.EventMapped)
	unrenewedEcho, byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8081"), home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	home.Reaches(t, unrenewedEcho, unrenewed.External)
	wait := watchReachability(t, home, renewed.External, reference, watchDuration, byTCP, byUDP)
	waitForExpiry(t, home, unrenewedEcho, unrenewed)
	wait()
	home.Reaches(t, byTCP, renewed.External)
	home.Reaches(t, byUDP, renewed.External)
	if s := renewed.fetchState(); s.Failure != nil || s.External != externalAddr(home, 8080) || s.Backend != backend || time.Until(s.Expires) < shortLease/4 {
		t.Errorf("%+v", s)
	}
	wantRules(t, home, 3)
	f.wantNoEvent()
	f.disable()
	wantRules(t, home, 1)
}

func TestRenew(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: renewed for several lifetimes")
	testRenewal(t, lab.Router{}, "natpmp")
}

// Two parts of a program forward TCP and UDP of one port, which are renewed and
// taken away apart. This router confuses their firewall rules: to make the rule
// of one anew, or to take it away, it deletes that of the other.
func TestRenewSiblings(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: TCP and UDP of a port, renewed and disabled apart")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	m := f.enable(tcp(8080))
	f.enable(udp(8080))
	home.Reaches(t, byTCP, m.External)
	home.Reaches(t, byUDP, m.External)
	wantReachable := func(echo lab.Echo, after string) {
		t.Helper()
		begin := time.Now()
		for !isReachable(t, home.Wan, echo, m.External) {
			if time.Since(begin) > maxGap {
				t.Errorf("after %s, bytes no longer arrive by %s", after, echo.Network)
				return
			}
		}
	}
	m.refresh()
	wantReachable(byTCP, "the renewal of TCP")
	wantReachable(byUDP, "the renewal of TCP")
	f.disable(tcp(8080))
	wantReachable(byUDP, "the end of TCP")
	wantRules(t, home, 1)
}

// The same, whichever protocol is first on the router's list of rules: renewed in
// either order, and over restarts that the router's clock shows, that it only
// announces, or that the next renewal finds.
func TestSiblingsInOrder(t *testing.T) {
	t.Parallel()
	const (
		lease         = 20 * time.Second
		beforeRenewal = lease / 2 // before the next renewal would mend it
	)
	for name, c := range map[string]struct {
		first, second option
		router        lab.Router
		silent        bool
	}{
		"TCP first, the clock starts at 0":   {tcp(8080), udp(8080), lab.Router{DaemonUptime: true}, false},
		"UDP first, the clock starts at 0":   {udp(8080), tcp(8080), lab.Router{DaemonUptime: true}, false},
		"UDP first, the clock does not tell": {udp(8080), tcp(8080), lab.Router{}, false},
		"TCP first, the router says nothing": {tcp(8080), udp(8080), lab.Router{DaemonUptime: true}, true},
		"UDP first, the router says nothing": {udp(8080), tcp(8080), lab.Router{DaemonUptime: true}, true},
		"TCP first, the clock does not tell": {tcp(8080), udp(8080), lab.Router{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: TCP and UDP of a port, apart, over renewals and restarts: "+name)
			home := lab.Home(t, c.router)
			if c.silent {
				suppressAnnouncements(t, home)
			}
			f := newForwarder(t, home.Lan, config{Lifetime: lease})
			byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
			first := f.enable(c.first)
			second := f.enable(c.second)
			wantBothReachable := func(after string, within time.Duration) {
				t.Helper()
				t.Logf("after %s: TCP after %v, UDP after %v", after,
					waitReachable(t, home, byTCP, first.External, within), waitReachable(t, home, byUDP, first.External, within))
			}
			renewBoth := func() {
				t.Helper()
				first.refresh()
				wantBothReachable("the renewal of the first", beforeRenewal)
				second.refresh()
				wantBothReachable("the renewal of the second", beforeRenewal)
			}
			wantBothReachable("the beginning", beforeRenewal)
			renewBoth()
			// Old enough for its clock to show it: it may run slow by an eighth and two seconds.
			waitUntil(t, maxWait, "the router's clock stands still", func() bool { return routerEpoch(t, home) >= 7*time.Second })
			powerOff(t, home)
			home.Daemon.Start(t)
			wantBothReachable("the restart", lease)
			renewBoth()
			renewBoth()
			f.disable(c.first)
			waitReachable(t, home, map[string]lab.Echo{"tcp": byTCP, "udp": byUDP}[c.second.Name], first.External, beforeRenewal)
		})
	}
}

// A mapping that is taken away goes at once, whatever its lifetime, and is not
// asked for again.
func TestDisabledStaysAway(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disabled, not renewed again")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Lifetime: 2 * time.Second})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	home.Reaches(t, echo, m.External)
	f.disable()
	begin := time.Now()
	waitUntil(t, maxWait, "the time does not pass", func() bool {
		wantRules(t, home, 0)
		return t.Failed() || time.Since(begin) > 3*time.Second
	})
}

// Refresh extends a mapping in place.
func TestRefresh(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: refreshed, in place and elsewhere")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080), lifetime(time.Minute))
	before := m.state
	m.refresh(lifetime(time.Hour))
	if m.External != before.External || m.Expires.Sub(before.Expires) < 50*time.Minute {
		t.Errorf("external %v, expires %v; before: %v, %v", m.External, m.Expires, before.External, before.Expires)
	}
	home.Reaches(t, echo, m.External)
	wantRules(t, home, 1)

	m.refresh(external(9090))
	if m.External != externalAddr(home, 9090) {
		t.Errorf("external %v, want port 9090", m.External)
	}
	home.Reaches(t, echo, m.External)
	home.DoesNotReach(t, echo, before.External)
	wantRules(t, home, 1)

	// What the router has lost comes back by a refresh.
	home.Daemon.Forget(t)
	home.DoesNotReach(t, echo, m.External)
	m.refresh()
	home.Reaches(t, echo, m.External)
}

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
		router    lab.Router
		lease     time.Duration
		tolerated int // of 100 probes, those that may fail
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
			reference := enableReference(t, home, f)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			m := f.enable(tcp(8080))
			home.Reaches(t, echo, m.External)
			// Only what is said to the router itself: probes go through it untouched.
			cable.Set(lab.Line{OneIn: 3, Seed: seed(t), Peer: home.Gateway})
			before := m.fetchState().Expires
			seen := 0
			unreachable, probes := 0, 0
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for begin := time.Now(); seen < renewalsWanted && time.Since(begin) < 12*c.lease; {
				<-tick.C
				probes++
				if !isReachable(t, home.Wan, echo, m.External) && isReachable(t, home.Wan, reference.echo, reference.external) {
					unreachable++
				}
				if s := m.fetchState(); s.Expires.After(before) {
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
			if unreachable*100 > c.tolerated*probes {
				t.Errorf("unreachable at %d of %d probes", unreachable, probes)
			}
		})
	}
}
