package labtest

import (
	"fmt"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// slowRoutes gives a host 3000 default routes by an interface with 250 addresses. A
// Forwarder that is bound to an interface reads all of them, which takes seconds.
// The kernel itself prefers the route by the interface spare. If the interface bulk
// is set down, only that route and those by other interfaces remain.
func slowRoutes(t *testing.T, host *lab.Host) {
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

// The route to the gateway goes away and comes back while an older comparison of
// the routes is still under way. The gateway is usable afterwards: a deletion
// without an answer is retried.
func TestRouteFlaps(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the default route goes away and comes back during a comparison of routes")
	home := lab.Home(t, lab.Router{})
	lan := home.Lan
	slowRoutes(t, lan)
	// The host has a second address on the same network. A route from that address is
	// another way to the gateway, and so a move.
	lan.Exec(t, "ip", "addr", "add", "192.168.77.20/24", "dev", "eth0")
	route := func(verb, source string) {
		t.Helper()
		lan.Exec(t, "sh", "-ec", fmt.Sprintf("ip route %s default via %v dev eth0 src %s metric 50", verb, home.Gateway, source))
	}
	lan.Exec(t, "ip", "route", "del", "default", "dev", "eth0")
	route("add", "192.168.77.2")
	f := newForwarder(t, lan, config{Interface: "eth0"})
	enabled := f.do(call{Op: "enable", Forwarder: f.n, Options: []option{tcp(8080)}})
	m, _ := f.enabled(enabled)
	f.event(forward.EventMapped)
	comparison := enabled.Took
	t.Logf("to read the routes takes about %v", comparison)
	passes := func(d time.Duration) {
		t.Helper()
		begin := time.Now()
		until(t, d+patience, "the time does not pass", func() bool { return time.Since(begin) > d })
	}

	// An event that changes nothing makes the watcher of the network read the routes.
	// So the move is noticed first by a call.
	lan.Exec(t, "ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
	passes(comparison / 2)
	route("replace", "192.168.77.20")
	id := f.begin(call{Op: "external IP", Forwarder: f.n})
	passes(comparison / 8)
	route("del", "192.168.77.20")
	// The call read the routes before that. The comparison that the call causes reads
	// them after that.
	f.await(id)
	// That comparison is under way, and ends after the one that this change causes.
	route("add", "192.168.77.20")
	lan.Exec(t, "ip", "link", "set", "bulk", "down")
	back := time.Now()
	passes(2 * comparison)
	until(t, patience, "the mapping does not follow", func() bool {
		s := m.now()
		return s.External.IsValid() && s.Internal.Addr().String() == "192.168.77.20"
	})

	trap := setTrap(t, home, mapRequests)
	closed := f.try(call{Op: "disable", Forwarder: f.n, Within: 3 * time.Second})
	if closed.Failure == nil {
		t.Error("Disable returned nil, and the router answered nothing")
	}
	trap.remove(t)
	begin := time.Now()
	if !eventually(10*time.Second, func() bool { return len(home.Rules(t)) == 0 }) {
		t.Errorf("the route is as it was for %v, the router has answered for %v, and the deletion is not retried: it has %q",
			time.Since(back).Round(time.Second), time.Since(begin).Round(time.Second), home.Rules(t))
	}
	f.close()
}
