package labtest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// The default route moves to another router, and back. The mapping follows, and
// the one on the router that was left is taken away.
func TestRouteMoves(t *testing.T) {
	t.Parallel()
	for backend, router := range map[string]lab.Router{"natpmp": {}, "pcp": pcpOnly, "upnp": upnpOnly} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "network: the default route moves to another router and back, "+backend)
			home := lab.Home(t, router)
			second := router
			second.WAN = netip.MustParsePrefix("46.46.46.1/24")
			rival := home.SecondRouter(t, second)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(tcp(8080))
			f.event(forward.EventMapped)
			home.Reaches(t, echo, m.External)
			for _, way := range []*lab.HomeNet{rival, home} {
				other := home
				if way == home {
					other = rival
				}
				home.Lan.Exec(t, "ip", "route", "replace", "default", "via", way.Gateway.String())
				begin := time.Now()
				f.event(forward.EventLost)
				if e := f.event(forward.EventRestored); e.External != at(way, 8080) {
					t.Errorf("%+v", e)
				}
				t.Logf("mapped again %v after the route had moved", time.Since(begin))
				way.Reaches(t, echo, at(way, 8080))
				if s := m.now(); s.Gateway.Addr() != way.Gateway || s.External != at(way, 8080) {
					t.Errorf("%+v", s)
				}
				until(t, patience, "the mapping stays on the router that was left", func() bool { return len(other.Rules(t)) == 0 })
			}
			f.close()
			wantRules(t, home, 0)
			wantRules(t, rival, 0)
		})
	}
}

// The default route goes, and comes back as it was. The mapping is restored at once,
// and not by the attempt that is due later.
func TestRouteReturns(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the default route goes and comes back")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	f.event(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	home.Lan.Exec(t, "ip", "route", "del", "default")
	f.event(forward.EventLost)
	var next time.Time
	until(t, patience, "attempts go on all the time", func() bool {
		s := m.now()
		next = s.NextTry
		return s.Failure != nil && time.Until(next) > 3*time.Second
	})
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	if e := f.event(forward.EventRestored); e.External != at(home, 8080) || !e.Time.Before(next) {
		t.Errorf("%+v; want it restored before the attempt that was due at %v", e, next)
	}
	home.Reaches(t, echo, at(home, 8080))
	f.close()
	wantRules(t, home, 0)
}

// This host gets another address. Its old mapping can be taken away by nobody:
// it is left to its lifetime.
func TestAddressMoves(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: this host's address changes")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	f.event(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	home.Lan.Exec(t, "sh", "-ec", `ip addr flush dev eth0 scope global
		ip addr add 192.168.77.22/24 dev eth0
		ip route add default via `+home.Gateway.String())
	f.event(forward.EventLost)
	e := f.event(forward.EventRestored)
	if e.External.Addr() != home.External {
		t.Errorf("%+v", e)
	}
	if s := m.now(); s.Internal.Addr() != netip.MustParseAddr("192.168.77.22") {
		t.Errorf("%+v", s)
	}
	comes(t, home, echo, e.External, patience)
	f.close()
}

// The cable is pulled, and plugged in again.
func TestLinkDown(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the interface goes down and comes up")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	f.event(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	home.Lan.Exec(t, "ip", "link", "set", "eth0", "down")
	f.event(forward.EventLost)
	home.Lan.Exec(t, "ip", "link", "set", "eth0", "up")
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	if e := f.event(forward.EventRestored); e.External != at(home, 8080) {
		t.Errorf("%+v", e)
	}
	comes(t, home, echo, m.External, patience)
	f.close()
	wantRules(t, home, 0)
}

// The network comes up after the program has started.
func TestNetworkComes(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "network: the way out appears after the mapping was wished for")
	home := lab.Home(t, lab.Router{})
	home.Lan.Exec(t, "ip", "route", "del", "default")
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080), background)
	until(t, patience, "no attempt fails", func() bool { return m.now().Failure != nil })
	until(t, patience, "attempts go on all the time", func() bool { return time.Until(m.now().NextTry) > 3*time.Second })
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	begin := time.Now()
	f.event(forward.EventMapped)
	took := time.Since(begin)
	t.Logf("mapped %v after the way out appeared", took)
	if took > 2*time.Second {
		t.Errorf("mapped %v after the way out appeared", took)
	}
	home.Reaches(t, echo, at(home, 8080))
}
