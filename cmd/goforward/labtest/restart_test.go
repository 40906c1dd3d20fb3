package labtest

import (
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// maxRestoreTime is how long a mapping may take to be restored after a router that
// announces its restart replies again.
const maxRestoreTime = time.Second

// restartRouters are two kinds of routers. With DaemonUptime, the epoch shows a restart.
// Without it, the epoch continues, and only the announcement shows the restart.
var restartRouters = map[string]lab.Router{
	"the clock starts at 0": {DaemonUptime: true},
	"the clock goes on":     {DaemonUptime: false},
}

// routerEpoch requests the epoch of the router. The request comes from the router itself,
// so firewall rules for the home do not apply.
func routerEpoch(t *testing.T, home *lab.HomeNet) time.Duration {
	t.Helper()
	conn, err := home.Router.Dial(t.Context(), "udp", home.Gateway.String()+":5351")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(maxWait))
	request, _ := natpmp.ExternalAddrRequest{}.MarshalBinary()
	for range 3 { // a busy machine may lose datagrams
		if _, err := conn.Write(request); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	r, err := natpmp.ParseExternalAddrResponse(buf[:n])
	if err != nil {
		t.Fatal(err)
	}
	return r.Epoch
}

// waitForEpoch waits until the epoch is larger than the deviation that the standard
// tolerates, so that a restart is noticed.
func waitForEpoch(t *testing.T, home *lab.HomeNet) {
	t.Helper()
	waitUntil(t, maxWait, "the router's epoch does not increase", func() bool { return routerEpoch(t, home) >= 4*time.Second })
}

// powerOff simulates a power cut: the daemon is killed, and bytes no longer arrive.
func powerOff(t *testing.T, home *lab.HomeNet) {
	t.Helper()
	home.Daemon.Kill(t)
	home.Daemon.Forget(t)
	wantRules(t, home, 0)
}

// TestRestart checks that mappings are restored soon after the router restarts and
// announces it.
func TestRestart(t *testing.T) {
	t.Parallel()
	for name, router := range restartRouters {
		for _, prefix := range []string{"forward", "pcp"} {
			t.Run(prefix+", "+name, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, prefix+": the router restarts, "+name)
				router := router
				router.NoNATPMP, router.NoUPnP = prefix == "pcp", prefix == "pcp"
				testRestart(t, router)
			})
		}
	}
}

func testRestart(t *testing.T, router lab.Router) {
	home := lab.Home(t, router)
	f := newForwarder(t, home.Lan, config{})
	byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	m := f.enable(both(8080))
	f.wantEvent(forward.EventMapped)
	home.Reaches(t, byTCP, m.External)
	home.Reaches(t, byUDP, m.External)
	waitForEpoch(t, home)

	powerOff(t, home)
	home.DoesNotReach(t, byTCP, m.External)
	home.DoesNotReach(t, byUDP, m.External)
	f.wantNoEvent()
	home.Daemon.Start(t)
	took := waitReachable(t, home, byTCP, m.External, maxWait)
	took += waitReachable(t, home, byUDP, m.External, maxWait)
	t.Logf("the first bytes arrived %v after the router was ready", took)
	if took > maxRestoreTime {
		t.Errorf("the first bytes arrived %v after the router was ready", took)
	}

	if router.DaemonUptime {
		if e := f.wantEvent(forward.EventLost); e.Previous != m.External || e.External.IsValid() {
			t.Errorf("%+v", e)
		}
		if e := f.wantEvent(forward.EventRestored); e.External != m.External {
			t.Errorf("%+v", e)
		}
	}
	m.wait(maxWait)
	if m.External != externalAddr(home, 8080) || m.Failure != nil {
		t.Errorf("%+v", m.state)
	}
	f.disable()
	wantRules(t, home, 0)
	f.wantNoEvent()
}

// TestRestartUnannounced checks a router that does not announce its restart. The next renewal
// restores the mapping.
func TestRestartUnannounced(t *testing.T) {
	t.Parallel()
	for name, router := range restartRouters {
		for _, prefix := range []string{"forward", "pcp"} {
			t.Run(prefix+", "+name, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, prefix+": the router restarts without a word, "+name)
				router := router
				router.NoNATPMP, router.NoUPnP = prefix == "pcp", prefix == "pcp"
				home := lab.Home(t, router)
				suppressAnnouncements(t, home)
				f := newForwarder(t, home.Lan, config{Lifetime: shortLease})
				echo := home.Lan.Echo(t, "tcp", ":8080")
				m := f.enable(tcp(8080))
				home.Reaches(t, echo, m.External)
				powerOff(t, home)
				home.DoesNotReach(t, echo, m.External)
				home.Daemon.Start(t)
				took := waitReachable(t, home, echo, m.External, 2*shortLease)
				t.Logf("bytes arrived %v after the router was ready", took)
				f.disable()
				wantRules(t, home, 0)
			})
		}
	}
}

// TestRestartClock checks a router that does not announce its restart, and a long lease.
// Another response shows the router's epoch, and the mapping is restored.
func TestRestartClock(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: the router restarts without a word, another answer tells")
	home := lab.Home(t, lab.Router{DaemonUptime: true})
	suppressAnnouncements(t, home)
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	f.wantEvent(forward.EventMapped)
	waitForEpoch(t, home)
	f.externalIP() // the response contains the epoch
	powerOff(t, home)
	home.DoesNotReach(t, echo, m.External)
	home.Daemon.Start(t)
	home.DoesNotReach(t, echo, m.External) // the restart is not noticed yet
	f.externalIP()
	took := waitReachable(t, home, echo, m.External, maxWait)
	t.Logf("bytes arrived %v after the response", took)
	if took > maxRestoreTime {
		t.Errorf("bytes arrived %v after the response", took)
	}
	f.wantEvent(forward.EventLost)
	f.wantEvent(forward.EventRestored)
}

// TestRestartLate checks a router that is down for longer than the lifetime.
func TestRestartLate(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: the router is away for longer than the lifetime")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Lifetime: 2 * time.Second})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	f.wantEvent(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	powerOff(t, home)
	f.wantEvent(forward.EventLost)
	if s := m.fetchState(); s.External.IsValid() || s.Failure == nil {
		t.Errorf("%+v", s)
	}
	home.DoesNotReach(t, echo, externalAddr(home, 8080))
	// Wait until several attempts have failed, so that the retry delays are long.
	begin := time.Now()
	waitUntil(t, maxWait, "the wait takes too long", func() bool { return time.Since(begin) > 4*time.Second })
	home.Daemon.Start(t)
	took := waitReachable(t, home, echo, externalAddr(home, 8080), maxWait)
	t.Logf("bytes arrived %v after the router was ready", took)
	if took > maxRestoreTime {
		t.Errorf("bytes arrived %v after the router was ready and had announced its restart", took)
	}
	if e := f.wantEvent(forward.EventRestored); e.External != externalAddr(home, 8080) {
		t.Errorf("%+v", e)
	}
}

// announceSignal makes the router send the announcement of an address change. It is
// SIGUSR1 on Linux, the only system on which these tests run.
const announceSignal = syscall.Signal(10)

// TestEndlessAnnouncements checks that mappings are still renewed if the router sends announcements
// all the time.
func TestEndlessAnnouncements(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: the router announces all the time")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Lifetime: shortLease})
	reference := enableReference(t, home, f)
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	home.Reaches(t, echo, m.External)
	wait := watchReachability(t, home, m.External, reference, 3*shortLease, echo)
	end := time.After(3 * shortLease)
	tick := time.NewTicker(700 * time.Millisecond)
	defer tick.Stop()
	for announcing := true; announcing; {
		select {
		case <-tick.C:
			home.Daemon.Signal(t, announceSignal)
		case <-end:
			announcing = false
		}
	}
	wait()
	home.Reaches(t, echo, m.External)
}

// TestRestartBeforeExternalLine checks a router that restarts before its external line is up, and sends
// no announcement when the line comes up. It does not run in parallel: on a busy machine, PCP can be
// chosen, and its refusal is valid for 30 seconds.
func TestRestartBeforeExternalLine(t *testing.T) {
	for name, router := range restartRouters {
		t.Run(name, func(t *testing.T) {
			lab.Scenario(t, "forward: the router restarts before its line is up, "+name)
			home := lab.Home(t, router)
			f := newForwarder(t, home.Lan, config{})
			echo := home.Lan.Echo(t, "tcp", ":8080")
			m := f.enable(tcp(8080))
			waitForEpoch(t, home)
			powerOff(t, home)
			home.Router.Exec(t, "ip", "addr", "del", "45.45.45.1/24", "dev", "wan0")
			home.Daemon.Start(t)
			waitUntil(t, maxWait, "no attempt fails", func() bool { return m.fetchState().Failure != nil })
			wantKinds(t, m.Failure, backends.ErrNetworkFailure)
			suppressAnnouncements(t, home)
			home.Router.Exec(t, "ip", "addr", "add", "45.45.45.1/24", "dev", "wan0")
			took := waitReachable(t, home, echo, externalAddr(home, 8080), maxWait)
			t.Logf("bytes arrived %v after the line was up", took)
			if took > 5*time.Second {
				t.Errorf("bytes arrived %v after the line was up", took)
			}
		})
	}
}

// TestRestartTwice checks two restarts in quick succession.
func TestRestartTwice(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: the router restarts twice")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	for range 2 {
		powerOff(t, home)
		home.DoesNotReach(t, echo, m.External)
		home.Daemon.Start(t)
		took := waitReachable(t, home, echo, m.External, maxWait)
		t.Logf("bytes arrived %v after the router was ready", took)
		if took > 6*time.Second { // mappings are requested again every five seconds at most
			t.Errorf("bytes arrived %v after the router was ready", took)
		}
	}
}

// TestRestartBetweenRequests checks a restart after TCP of a unit is mapped and before UDP is
// mapped. Then the rule of TCP is the last in the router's list. When this router renews
// the other rule, it deletes the last one.
func TestRestartBetweenRequests(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		router lab.Router
		udp    string // matches the requests for UDP mappings
	}{
		"natpmp": {lab.Router{DaemonUptime: true, NoPCP: true, NoUPnP: true}, `@th,64,16 0x0001`},
		"pcp":    {lab.Router{DaemonUptime: true, NoNATPMP: true, NoUPnP: true}, `@th,64,16 0x0201 @th,352,8 17`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the router restarts between TCP and UDP of a port, "+name)
			home := lab.Home(t, c.router)
			f := newForwarder(t, home.Lan, config{})
			byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
			f.enable(tcp(9000)) // this makes the client watch the router
			waitForEpoch(t, home)
			rule := home.Router.Rule(t, "input", `iifname "lan0" udp dport 5351 `+c.udp+` drop`)
			id := f.beginEnable(both(8080))
			waitUntil(t, maxWait, "TCP is not mapped", func() bool { return len(home.Rules(t)) == 2 })
			home.Daemon.Restart(t)
			rule.Remove(t)
			m, err := f.toMapping(f.await(id))
			if err != nil {
				t.Fatal(err)
			}
			// The client may notice the restart at any moment. Then the mapping is lost
			// until it is granted again.
			m.wait(maxWait)
			waitReachable(t, home, byTCP, m.External, maxWait)
			waitReachable(t, home, byUDP, m.External, maxWait)
			for range 3 {
				m.refresh()
				home.Reaches(t, byTCP, m.External)
				home.Reaches(t, byUDP, m.External)
			}
			f.close()
			wantRules(t, home, 0)
		})
	}
}
