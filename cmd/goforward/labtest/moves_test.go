package labtest

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// A host that moves from network to network uses no more goroutines and no more
// sockets than in the first one.
func TestMovesLeaveNothing(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the goroutines and sockets for networks that were left are closed")
	home := lab.Home(t, lab.Router{})
	rival := home.SecondRouter(t, lab.Router{WAN: netip.MustParsePrefix("46.46.46.1/24")})
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	f.event(forward.EventMapped)
	const moves = 6
	goroutines, files := f.fewest("goroutines"), f.fewest("files")
	for i := range moves {
		router := rival
		if i%2 == 1 {
			router = home
		}
		addr := netip.AddrFrom4([4]byte{192, 168, 77, byte(20 + i)})
		home.Lan.Exec(t, "sh", "-ec", fmt.Sprintf(`ip addr flush dev eth0 scope global
			ip addr add %v/24 dev eth0
			ip route add default via %v`, addr, router.Gateway))
		until(t, patience, "the mapping does not follow", func() bool {
			s := m.now()
			return s.External.Addr() == router.External && s.Internal.Addr() == addr
		})
	}
	for what, had := range map[string]int{"goroutines": goroutines, "files": files} {
		const slack = moves / 2 // less than one for each network
		now := 0
		if !eventually(patience/2, func() bool { now = f.vital(what); return now <= had+slack }) {
			t.Errorf("after %d moves to another network the process has %d %s, before it had %d", moves, now, what, had)
		}
	}
	// A mapping of an address that this host no longer has cannot be deleted: Close may
	// still say that it remains.
	f.try(call{Op: "close", Forwarder: f.n})
}

// A mapping follows the default route at once, whatever else changed in the network
// before.
func TestMoveAfterIdleEvents(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the default route moves after many events that change nothing")
	home := lab.Home(t, lab.Router{})
	rival := home.SecondRouter(t, lab.Router{WAN: netip.MustParsePrefix("46.46.46.1/24")})
	f := newForwarder(t, home.Lan, config{})
	f.enable(tcp(8080))
	f.event(forward.EventMapped)
	begin := time.Now()
	until(t, patience, "the time does not pass", func() bool {
		home.Lan.Exec(t, "sh", "-ec", `ip addr add 10.99.0.1/32 dev lo
			ip addr del 10.99.0.1/32 dev lo`)
		return time.Since(begin) > time.Second
	})
	home.Lan.Exec(t, "ip", "route", "replace", "default", "via", rival.Gateway.String())
	lost := f.event(forward.EventLost)
	restored := f.event(forward.EventRestored)
	if restored.External != at(rival, 8080) {
		t.Errorf("%+v", restored)
	}
	const longest = 3 * time.Second
	if took := restored.Time.Sub(lost.Time); took > longest {
		t.Errorf("the mapping was requested from the new router %v after the move was noticed, want less than %v", took, longest)
	}
	f.close()
}

// fewest is the smallest of the counts within a moment: what ends by itself is not
// in it.
func (a *agent) fewest(op string) int {
	a.t.Helper()
	least := a.vital(op)
	begin := time.Now()
	until(a.t, patience, "the time does not pass", func() bool {
		least = min(least, a.vital(op))
		return time.Since(begin) > time.Second
	})
	return least
}
