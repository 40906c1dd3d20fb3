package labtest

import (
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// A program that starts before the network does.
func TestBackground(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: in the background, before there is a route")
	home := lab.Home(t, lab.Router{})
	home.Lan.Exec(t, "ip", "route", "del", "default")
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	got := f.do(call{Op: "enable", Forwarder: f.n, Options: []option{tcp(8080), background}})
	if got.Took > slack || got.State.External.IsValid() {
		t.Errorf("after %v: %+v", got.Took, got.State)
	}
	m, _ := f.enabled(got)
	until(t, patience, "no attempt fails", func() bool { return m.now().Failure != nil })
	wantKinds(t, m.Failure, forward.ErrNoGateway)

	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	begin := time.Now()
	m.wait(patience)
	t.Logf("granted %v after the route came", time.Since(begin))
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("granted %v after the route came", took)
	}
	f.event(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	f.disable()
	wantRules(t, home, 0)
}

// A program that starts before the router does.
func TestBackgroundRouter(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: in the background, before the router answers")
	home := lab.Home(t, lab.Router{})
	home.Daemon.Kill(t)
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "udp", ":8080")
	m := f.enable(udp(8080), background)
	until(t, patience, "no attempt fails", func() bool { return m.now().Failure != nil })
	wantKinds(t, m.Failure, forward.ErrNoGateway, backends.ErrNoReply)
	home.DoesNotReach(t, echo, at(home, 8080))
	home.Daemon.Start(t)
	begin := time.Now()
	m.wait(patience)
	t.Logf("granted %v after the router was ready", time.Since(begin))
	f.event(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	m.close()
	wantRules(t, home, 0)
}
