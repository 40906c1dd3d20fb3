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

// soon is how long a mapping may take to be back after a router that announces
// its restart answers again.
const maxRestoreTime = time.Second

// restarts names the two kinds of routers: one's clock tells of a restart, the
// other's goes on, so that nothing but the announcement tells.
var restartRouters = map[string]lab.Router{
	"the clock starts at 0": {DaemonUptime: true},
	"the clock goes on":     {DaemonUptime: false},
}

// epoch asks the router for its clock, from the router itself, where no rule is
// in the way.
func routerEpoch(t *testing.T, home *lab.HomeNet) time.Duration {
	t.Helper()
	conn, err := home.Router.Dial(t.Context(), "udp", home.Gateway.String()+":5351")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(maxWait))
	request, _ := natpmp.ExternalAddrRequest{}.MarshalBinary()
	for range 3 { // datagrams get lost on a machine that is busy
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

// age waits until the router's clock has gone on by more than the standard
// takes for noise, so that a restart shows.
func waitForEpoch(t *testing.T, home *lab.HomeNet) {
	t.Helper()
	waitUntil(t, maxWait, "the router's clock stands still", func() bool { return routerEpoch(t, home) >= 4*time.Second })
}

// die is a power cut: bytes no longer arrive.
func powerOff(t *testing.T, home *lab.HomeNet) {
	t.Helper()
	home.Daemon.Kill(t)
	home.Daemon.Forget(t)
	wantRules(t, home, 0)
}

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

// The router says nothing, so the mapping is back at the next renewal.
func TestRestartMute(t *testing.T) {
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

// The router says nothing, and the lease is long: another answer of the router
// shows its clock, and that is enough.
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
	f.externalIP() // tells the clock
	powerOff(t, home)
	home.DoesNotReach(t, echo, m.External)
	home.Daemon.Start(t)
	home.DoesNotReach(t, echo, m.External) // nobody has noticed
	f.externalIP()
	took := waitReachable(t, home, echo, m.External, maxWait)
	t.Logf("bytes arrived %v after the answer", took)
	if took > maxRestoreTime {
		t.Errorf("bytes arrived %v after the answer", took)
	}
	f.wantEvent(forward.EventLost)
	f.wantEvent(forward.EventRestored)
}

// The router is away for longer than the mapping lives.
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
	// Let it fail often enough for the pauses to be long.
	begin := time.Now()
	waitUntil(t, maxWait, "the time does not pass", func() bool { return time.Since(begin) > 4*time.Second })
	home.Daemon.Start(t)
	took := waitReachable(t, home, echo, externalAddr(home, 8080), maxWait)
	t.Logf("bytes arrived %v after the router was ready", took)
	if took > maxRestoreTime {
		t.Errorf("bytes arrived %v after the router was ready and had announced it", took)
	}
	if e := f.wantEvent(forward.EventRestored); e.External != externalAddr(home, 8080) {
		t.Errorf("%+v", e)
	}
}

// announceSignal makes the router announce as if its address had changed: it is
// SIGUSR1 of Linux, where alone this runs.
const announceSignal = syscall.Signal(10)

// A router that announces all the time keeps no mapping from being renewed.
func TestRestless(t *testing.T) {
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

// The router is back before its line is, and says nothing when that is up.
func TestRestartLine(t *testing.T) {
	t.Parallel()
	for name, router := range restartRouters {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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

// Two restarts one soon after the other.
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
		if took > 6*time.Second { // mappings are asked for again every five seconds at most
			t.Errorf("bytes arrived %v after the router was ready", took)
		}
	}
}

// TCP of a unit is mapped, the router restarts, and UDP is mapped: now TCP comes
// last on the router's list of rules. This router takes the last away at a
// renewal of the other.
func TestRestartInBetween(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		router lab.Router
		udp    string // requests for it
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
			f.enable(tcp(9000)) // and so the router is watched
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
			// The restart may be noticed at any moment: then it is lost until it is granted again.
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
