package labtest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/internal/testseed"
)

const shortLease = 6 * time.Second

// maxGap is the longest time in which bytes may fail to arrive during a renewal. This
// router deletes the old entry a millisecond before it creates the new one. On a busy
// machine, a gap of a second was seen.
const maxGap = 2 * time.Second

// echoTarget is an echo server and the external address at which it is reachable.
type echoTarget struct {
	echo     lab.Echo
	external netip.AddrPort
}

// measureGap probes the watched target until done is closed. It returns the longest time
// in which no bytes arrived. Probes do not count if bytes did not arrive at the reference
// target either, because then the machine is too busy.
func measureGap(t *testing.T, home *lab.HomeNet, watched, reference echoTarget, done <-chan struct{}) (gap time.Duration) {
	t.Helper()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var unreachable time.Duration // since the last probe that arrived
	for last := time.Now(); ; {
		arrived := isReachable(t, home.Wan, watched.echo, watched.external) || !isReachable(t, home.Wan, reference.echo, reference.external)
		now := time.Now()
		if arrived {
			unreachable = 0
		} else { // a machine that is late with a probe does not extend the gap
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

// isReachable sends one probe and waits a short time for the reply.
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

// watchDuration is how long the tests watch a mapping with the short lease: more than
// three lifetimes.
const watchDuration = 3*shortLease + shortLease/4

// enableReference creates a mapping that needs no renewal. It shows whether the machine
// is too busy or another mapping is missing. The mapping stays in the router's table
// until the test ends.
func enableReference(t *testing.T, home *lab.HomeNet, f *remoteForwarder, opts ...option) echoTarget {
	t.Helper()
	m := f.enable(append(opts, tcp(8082), lifetime(time.Hour), once)...)
	f.wantEvent(forward.EventMapped)
	return echoTarget{home.Lan.Echo(t, "tcp", m.Internal.String()), m.External}
}

// watchReachability starts measureGap for each echo server. wait waits for the results
// and fails the test if a gap is too long.
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

// waitForExpiry waits until a mapping that is not renewed expires, which shows that this
// router enforces lifetimes.
func waitForExpiry(t *testing.T, home *lab.HomeNet, echo lab.Echo, m *mapping) {
	t.Helper()
	waitUnreachable(t, home, echo, m.External, 2*shortLease)
	elapsed := time.Since(m.Grants[0].Granted)
	t.Logf("the mapping that is not renewed was deleted after %v", elapsed)
	if elapsed < shortLease-time.Second {
		t.Errorf("the mapping that is not renewed was deleted after %v, want %v", elapsed, shortLease)
	}
}

// testRenewal checks that bytes arrive all the time while a mapping is renewed for more
// than three lifetimes. Another mapping, which is not renewed, is deleted when its
// lifetime ends.
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

// TestRenewPortGroup checks two parts of a program that forward TCP and UDP of one port
// separately. This router confuses their firewall rules: if it renews or deletes one
// rule, it deletes the other rule.
func TestRenewPortGroup(t *testing.T) {
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
	wantReachable(byUDP, "the deletion of TCP")
	wantRules(t, home, 1)
}

// TestPortGroupOrder repeats TestRenewPortGroup with either protocol first in the
// router's list of rules, and with renewals in either order. The router restarts, too:
// its epoch shows the restart, or only an announcement shows it, or only the next renewal
// detects it.
func TestPortGroupOrder(t *testing.T) {
	t.Parallel()
	const (
		lease         = 20 * time.Second
		beforeRenewal = lease / 2 // the next renewal would restore the mapping later
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
			// The epoch must be large enough to show the restart: the client tolerates a
			// clock that is slow by an eighth and two seconds.
			waitUntil(t, maxWait, "the router's epoch does not increase", func() bool { return routerEpoch(t, home) >= 7*time.Second })
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

// TestDisabledNotRequestedAgain checks that a mapping is deleted at once by Disable, before its
// lifetime ends, and is not requested again.
func TestDisabledNotRequestedAgain(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disabled, not renewed again")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Lifetime: 2 * time.Second})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	home.Reaches(t, echo, m.External)
	f.disable()
	begin := time.Now()
	waitUntil(t, maxWait, "the wait takes too long", func() bool {
		wantRules(t, home, 0)
		return t.Failed() || time.Since(begin) > 3*time.Second
	})
}

// TestRefresh checks that Refresh extends a mapping, moves it to another port, and
// restores it.
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

	// Refresh restores a mapping that the router has lost.
	home.Daemon.Forget(t)
	home.DoesNotReach(t, echo, m.External)
	m.refresh()
	home.Reaches(t, echo, m.External)
}

// TestLoss checks ten renewals and more while every third packet to and from the router
// is lost. A renewal may be late, but the mapping must not be lost.
//
// The cable of the host loses exactly one of every three packets in each direction. A
// seed selects which one, so the outcome does not depend on chance:
//
//   - At most two packets in a row are lost in one direction. So at most five
//     requests in a row get no reply: for example, two requests are lost, the replies to
//     the next two are lost, and the fifth request is lost. The sixth gets a reply.
//   - NAT-PMP and PCP repeat a request after 250 ms, 500 ms and then each second.
//     The intervals of PCP are up to a tenth longer. They send the sixth request at
//     most 4.2 s after the first.
//   - A renewal begins at five eighths of the remaining lifetime, at the latest. Of
//     16 s, NAT-PMP may have spent 2 s on the external address. So at least
//     (16 s - 2 s) * 3/8 = 5.2 s remain, and no lease of these two protocols expires
//     before it is renewed.
//   - UPnP has no such bound: a renewal takes several TCP connections, whose packets
//     the kernel repeats after 200 ms, 400 ms and so on. So a lease may expire. The
//     number of tolerated failures allows for this.
//
// The tolerated failures also allow for probes that a busy machine loses.
func TestLoss(t *testing.T) {
	t.Parallel()
	const renewalsWanted = 10
	for backend, c := range map[string]struct {
		router    lab.Router
		lease     time.Duration
		tolerated int // how many of 100 probes may fail
	}{
		"natpmp": {lab.Router{NoPCP: true, NoUPnP: true}, 16 * time.Second, 5},
		"pcp":    {pcpOnly, 16 * time.Second, 5},
		"upnp":   {upnpOnly, 20 * time.Second, 15}, // with six seeds on a busy machine, at most one of 130 probes failed
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
			// Packets are lost only between the host and the router. The probes pass
			// through the router unchanged.
			cable.Set(lab.Line{OneIn: 3, Seed: testseed.Of(t), Peer: home.Gateway})
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
			t.Logf("%d renewals seen; unreachable at %d of %d probes, one probe per second", seen, unreachable, probes)
			if seen < renewalsWanted {
				t.Errorf("%d renewals seen, want %d", seen, renewalsWanted)
			}
			// Ten renewals take at least ten packets in each direction.
			if fromHost, toHost := cable.Lost(); fromHost < 3 || toHost < 3 {
				t.Errorf("the cable lost %d packets from the host and %d packets to the host, want more", fromHost, toHost)
			}
			if unreachable*100 > c.tolerated*probes {
				t.Errorf("unreachable at %d of %d probes", unreachable, probes)
			}
		})
	}
}
