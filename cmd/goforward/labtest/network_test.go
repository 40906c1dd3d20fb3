package labtest

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// TestRouteMoves checks a default route that moves to another router and back. The
// mapping follows, and the mapping on the former router is deleted.
func TestRouteMoves(t *testing.T) {
	t.Parallel()
	for backend, router := range map[string]lab.Router{"natpmp": {}, "pcp": pcpOnly, "upnp": upnpOnly} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "network: the default route moves to another router and back, "+backend)
			home := lab.Home(t, router)
			secondConfig := router
			secondConfig.WAN = netip.MustParsePrefix("46.46.46.1/24")
			second := home.SecondRouter(t, secondConfig)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(tcp(8080))
			f.wantEvent(forward.EventMapped)
			home.Reaches(t, echo, m.External)
			for _, current := range []*lab.HomeNet{second, home} {
				other := home
				if current == home {
					other = second
				}
				home.Lan.Exec(t, "ip", "route", "replace", "default", "via", current.Gateway.String())
				begin := time.Now()
				f.wantEvent(forward.EventLost)
				if e := f.wantEvent(forward.EventRestored); e.External != externalAddr(current, 8080) {
					t.Errorf("%+v", e)
				}
				t.Logf("mapped again %v after the route had moved", time.Since(begin))
				current.Reaches(t, echo, externalAddr(current, 8080))
				if s := m.fetchState(); s.Gateway.Addr() != current.Gateway || s.External != externalAddr(current, 8080) {
					t.Errorf("%+v", s)
				}
				waitUntil(t, maxWait, "the mapping stays on the former router", func() bool { return len(other.Rules(t)) == 0 })
			}
			f.close()
			wantRules(t, home, 0)
			wantRules(t, second, 0)
		})
	}
}

// TestRouteReturns checks a default route that is deleted and added again. The mapping is
// restored at once, before the next scheduled attempt.
func TestRouteReturns(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the default route goes and comes back")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	f.wantEvent(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	home.Lan.Exec(t, "ip", "route", "del", "default")
	f.wantEvent(forward.EventLost)
	var next time.Time
	waitUntil(t, maxWait, "the time to the next attempt does not grow", func() bool {
		s := m.fetchState()
		next = s.NextAttempt
		return s.Failure != nil && time.Until(next) > 3*time.Second
	})
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	if e := f.wantEvent(forward.EventRestored); e.External != externalAddr(home, 8080) || !e.Time.Before(next) {
		t.Errorf("%+v; want it restored before the attempt scheduled for %v", e, next)
	}
	home.Reaches(t, echo, externalAddr(home, 8080))
	f.close()
	wantRules(t, home, 0)
}

// TestAddressMoves checks a host that gets another address. The old mapping cannot be
// deleted from the new address, and it stays until its lifetime ends.
func TestAddressMoves(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: this host's address changes")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	f.wantEvent(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	home.Lan.Exec(t, "sh", "-ec", `ip addr flush dev eth0 scope global
		ip addr add 192.168.77.22/24 dev eth0
		ip route add default via `+home.Gateway.String())
	f.wantEvent(forward.EventLost)
	e := f.wantEvent(forward.EventRestored)
	if e.External.Addr() != home.External {
		t.Errorf("%+v", e)
	}
	if s := m.fetchState(); s.Internal.Addr() != netip.MustParseAddr("192.168.77.22") {
		t.Errorf("%+v", s)
	}
	waitReachable(t, home, echo, e.External, maxWait)
	f.close()
}

// TestLinkDown checks an interface that goes down and comes up again, as when a cable is
// unplugged and plugged in.
func TestLinkDown(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the interface goes down and comes up")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	f.wantEvent(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	home.Lan.Exec(t, "ip", "link", "set", "eth0", "down")
	f.wantEvent(forward.EventLost)
	home.Lan.Exec(t, "ip", "link", "set", "eth0", "up")
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	if e := f.wantEvent(forward.EventRestored); e.External != externalAddr(home, 8080) {
		t.Errorf("%+v", e)
	}
	waitReachable(t, home, echo, m.External, maxWait)
	f.close()
	wantRules(t, home, 0)
}

// TestNetworkAppears checks a default route that is added after the program has started.
func TestNetworkAppears(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the way out appears after the mapping was wished for")
	home := lab.Home(t, lab.Router{})
	home.Lan.Exec(t, "ip", "route", "del", "default")
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080), background)
	waitUntil(t, maxWait, "no attempt fails", func() bool { return m.fetchState().Failure != nil })
	waitUntil(t, maxWait, "the time to the next attempt does not grow", func() bool { return time.Until(m.fetchState().NextAttempt) > 3*time.Second })
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	begin := time.Now()
	f.wantEvent(forward.EventMapped)
	took := time.Since(begin)
	t.Logf("mapped %v after the default route appeared", took)
	if took > 2*time.Second {
		t.Errorf("mapped %v after the default route appeared", took)
	}
	home.Reaches(t, echo, externalAddr(home, 8080))
}

// TestAddressChange checks that the Forwarder reports a new external address of the
// router, which replaces the old address at once or after some time without an address.
func TestAddressChange(t *testing.T) {
	t.Parallel()
	const add, del = "ip addr add 45.45.45.77/24 dev wan0", "ip addr del 45.45.45.1/24 dev wan0"
	for name, change := range map[string][]string{
		"at once":      {"sysctl -qw net.ipv4.conf.wan0.promote_secondaries=1; " + add + "; " + del},
		"down, and up": {del, add},
	} {
		for _, prefix := range []string{"forward", "pcp", "upnp"} {
			t.Run(prefix+", "+name, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, prefix+": another external address, "+name)
				var protocols []string
				if prefix != "forward" {
					protocols = []string{prefix}
				}
				testAddressChange(t, lab.Home(t, lab.Router{DaemonUptime: true}), protocols, change)
			})
		}
	}
}

// stopSignal and continueSignal are SIGSTOP and SIGCONT on Linux, the only system on which
// these tests run.
const (
	stopSignal     = syscall.Signal(19)
	continueSignal = syscall.Signal(18)
)

func testAddressChange(t *testing.T, home *lab.HomeNet, protocols, change []string) {
	t.Helper()
	f := newForwarder(t, home.Lan, config{Protocols: protocols})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	f.wantEvent(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	waitForEpoch(t, home) // the router's epoch restarts with each address, as the standard requires

	for _, script := range change {
		// The daemon announces a change once, and the client then requests the address. So the
		// daemon must not run in the middle of a script, between two addresses.
		home.Daemon.Signal(t, stopSignal)
		home.Router.Exec(t, "sh", "-ec", script)
		home.Daemon.Signal(t, continueSignal)
	}
	begin, stalled := time.Now(), measureStalls()
	want := netip.AddrPortFrom(netip.MustParseAddr("45.45.45.77"), 8080)
	e := f.nextEvent()
	isPCP := slices.Equal(protocols, []string{"pcp"})
	for e.External != want && (isPCP || len(change) > 1) {
		e = f.nextEvent()
	}
	took := time.Since(begin) - stalled()
	t.Logf("the event arrived after %v", took)
	if took > 3*maxRestoreTime {
		t.Errorf("the event arrived after %v", took)
	}
	// The router's epoch starts at 0 again. By PCP, this looks like a restart, because PCP
	// has no request for the address. The mapping is also lost if the daemon announces that it
	// has no address, between the two scripts.
	mayBeLost := isPCP || len(change) > 1
	if e.Kind != forward.EventChanged && (!mayBeLost || e.Kind != forward.EventRestored) {
		t.Errorf("event %v, want changed", e.Kind)
	}
	if s := m.fetchState(); s.External != want || s.Failure != nil {
		t.Errorf("%+v", s)
	}
	home.Reaches(t, echo, want)
	f.disable()
	wantRules(t, home, 0)
	f.wantNoEvent()
}

// addManyRoutes gives a host 3000 default routes through the interface bulk, which has
// 250 addresses. A Forwarder that is bound to an interface reads all routes, which takes
// seconds. The kernel itself prefers the route through the interface spare. If the
// interface bulk goes down, only that route and the routes through other interfaces
// remain.
func addManyRoutes(t *testing.T, host *lab.Host) {
	t.Helper()
	host.Exec(t, "sh", "-ec", `{
			echo link add spare up type veth peer name spare2
			echo link set spare2 up
			echo addr add 10.50.0.1/24 dev spare
			echo route add default via 10.50.0.2 dev spare metric 1
			echo link add bulk up type veth peer name bulk2
			echo link set bulk2 up
			echo addr add 10.51.0.1/16 dev bulk
			seq -f "addr add 10.52.0.%g/32 dev bulk" 250
			seq -f "route add default via 10.51.0.2 dev bulk metric %g" 1001 4000
		} | ip -batch -`)
}

// TestRouteFlaps checks a route to the gateway that is deleted and added again while an
// older comparison of the routes is still running. Afterwards the gateway is usable: a
// deletion without a reply is retried.
func TestRouteFlaps(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the default route goes away and comes back during a comparison of routes")
	home := lab.Home(t, lab.Router{})
	lan := home.Lan
	addManyRoutes(t, lan)
	// The host has a second address on the same network. A default route with that source
	// address is a different route to the gateway, so it counts as a move.
	lan.Exec(t, "ip", "addr", "add", "192.168.77.20/24", "dev", "eth0")
	route := func(verb, source string) {
		t.Helper()
		lan.Exec(t, "sh", "-ec", fmt.Sprintf("ip route %s default via %v dev eth0 src %s metric 50", verb, home.Gateway, source))
	}
	lan.Exec(t, "ip", "route", "del", "default", "dev", "eth0")
	route("add", "192.168.77.2")
	f := newForwarder(t, lan, config{Interface: "eth0"})
	enabled := f.do(call{Op: "enable", Forwarder: f.n, Options: []option{tcp(8080)}})
	m, _ := f.toMapping(enabled)
	f.wantEvent(forward.EventMapped)
	comparison := enabled.Took
	t.Logf("reading the routes takes about %v", comparison)
	pass := func(d time.Duration) {
		t.Helper()
		begin := time.Now()
		waitUntil(t, d+maxWait, "the wait takes too long", func() bool { return time.Since(begin) > d })
	}

	// An event that changes nothing makes the network watcher read the routes. So a call
	// is the first to notice the move.
	lan.Exec(t, "ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
	pass(comparison / 2)
	route("replace", "192.168.77.20")
	id := f.begin(call{Op: "external IP", Forwarder: f.n})
	pass(comparison / 8)
	route("del", "192.168.77.20")
	// The call read the routes before they changed. The comparison that the call causes
	// reads the routes after the change.
	f.await(id)
	// That comparison is still running, and ends after the comparison that this change
	// causes.
	route("add", "192.168.77.20")
	lan.Exec(t, "ip", "link", "set", "bulk", "down")
	restored := time.Now()
	pass(2 * comparison)
	waitUntil(t, maxWait, "the mapping does not follow", func() bool {
		s := m.fetchState()
		return s.External.IsValid() && s.Internal.Addr().String() == "192.168.77.20"
	})

	drop := dropPackets(t, home, mapRequests)
	closed := f.try(call{Op: "disable", Forwarder: f.n, Within: 3 * time.Second})
	if closed.Failure == nil {
		t.Error("Disable returned nil, but the router sent no reply")
	}
	drop.remove(t)
	begin := time.Now()
	if !eventually(10*time.Second, func() bool { return len(home.Rules(t)) == 0 }) {
		t.Errorf("the route was restored %v ago and the router has replied for %v, but the deletion is not retried: the router has %q",
			time.Since(restored).Round(time.Second), time.Since(begin).Round(time.Second), home.Rules(t))
	}
	f.close()
}

// TestMovesLeakNothing checks that a host that moves from network to network does not
// use more goroutines and sockets than in the first network.
func TestMovesLeakNothing(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the goroutines and sockets for networks that were left are closed")
	home := lab.Home(t, lab.Router{})
	second := home.SecondRouter(t, lab.Router{WAN: netip.MustParsePrefix("46.46.46.1/24")})
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	f.wantEvent(forward.EventMapped)
	const moves = 6
	goroutines, files := f.minResourceUse("goroutines"), f.minResourceUse("files")
	for i := range moves {
		router := second
		if i%2 == 1 {
			router = home
		}
		addr := netip.AddrFrom4([4]byte{192, 168, 77, byte(20 + i)})
		home.Lan.Exec(t, "sh", "-ec", fmt.Sprintf(`ip addr flush dev eth0 scope global
			ip addr add %v/24 dev eth0
			ip route add default via %v`, addr, router.Gateway))
		waitUntil(t, maxWait, "the mapping does not follow", func() bool {
			s := m.fetchState()
			return s.External.Addr() == router.External && s.Internal.Addr() == addr
		})
	}
	for what, before := range map[string]int{"goroutines": goroutines, "files": files} {
		const slack = moves / 2 // less than one for each network
		now := 0
		if !eventually(maxWait/2, func() bool { now = f.resourceUse(what); return now <= before+slack }) {
			t.Errorf("after %d moves to another network the process has %d %s, %d before", moves, now, what, before)
		}
	}
	// A mapping of an address that this host no longer has cannot be deleted. So Close
	// may return an error that it remains.
	f.try(call{Op: "close", Forwarder: f.n})
}

// TestMoveAfterIdleEvents checks that a mapping follows the default route at once, even
// after many network events that changed nothing.
func TestMoveAfterIdleEvents(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the default route moves after many events that change nothing")
	home := lab.Home(t, lab.Router{})
	second := home.SecondRouter(t, lab.Router{WAN: netip.MustParsePrefix("46.46.46.1/24")})
	f := newForwarder(t, home.Lan, config{})
	f.enable(tcp(8080))
	f.wantEvent(forward.EventMapped)
	begin := time.Now()
	waitUntil(t, maxWait, "the wait takes too long", func() bool {
		home.Lan.Exec(t, "sh", "-ec", `ip addr add 10.99.0.1/32 dev lo
			ip addr del 10.99.0.1/32 dev lo`)
		return time.Since(begin) > time.Second
	})
	home.Lan.Exec(t, "ip", "route", "replace", "default", "via", second.Gateway.String())
	lost := f.wantEvent(forward.EventLost)
	restored := f.wantEvent(forward.EventRestored)
	if restored.External != externalAddr(second, 8080) {
		t.Errorf("%+v", restored)
	}
	const longest = 3 * time.Second
	if took := restored.Time.Sub(lost.Time); took > longest {
		t.Errorf("the mapping was granted by the new router %v after the move was noticed, want less than %v", took, longest)
	}
	f.close()
}

// minResourceUse returns the smallest count within a second, so that short-lived
// goroutines and files do not count.
func (a *agent) minResourceUse(op string) int {
	a.t.Helper()
	smallest := a.resourceUse(op)
	begin := time.Now()
	waitUntil(a.t, maxWait, "the wait takes too long", func() bool {
		smallest = min(smallest, a.resourceUse(op))
		return time.Since(begin) > time.Second
	})
	return smallest
}
