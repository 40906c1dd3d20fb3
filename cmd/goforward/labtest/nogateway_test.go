package labtest

import (
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// allAnswered is when a search is given up that nobody has answered, where all
// else has failed.
const allAnswered = 1300 * time.Millisecond

func TestNoRoute(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: no route, verdict at once")
	home := lab.Home(t, lab.Router{})
	home.Lan.Exec(t, "ip", "route", "del", "default")
	f := newForwarder(t, home.Lan, config{})
	took := f.refused([]error{forward.ErrNoGateway}, tcp(8080))
	t.Logf("the verdict came after %v", took)
	if took > slack {
		t.Errorf("the verdict came after %v", took)
	}
	// The network comes up.
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	m := f.enable(tcp(8080))
	home.Reaches(t, home.Lan.Echo(t, "tcp", ":8080"), m.External)
}

func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: 5351 silent, verdict within Wait")
	const wait = 1200 * time.Millisecond
	home := lab.Home(t, lab.Router{Silent5351: true, NoUPnP: true})
	f := newForwarder(t, home.Lan, config{Wait: wait})
	took := f.refused([]error{forward.ErrNoGateway, backends.ErrNoReply}, tcp(8080))
	t.Logf("the verdict came after %v", took)
	if took > wait+slack {
		t.Errorf("the verdict came after %v, want %v", took, wait)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: 5351 refused, verdict when every device can have answered")
	home := lab.Home(t, lab.Router{Refuse5351: true, NoUPnP: true})
	f := newForwarder(t, home.Lan, config{})
	took := f.refused([]error{forward.ErrNoGateway, backends.ErrNoReply}, tcp(8080))
	t.Logf("the verdict came after %v", took)
	if took > allAnswered+slack {
		t.Errorf("the verdict came after %v", took)
	}
}
