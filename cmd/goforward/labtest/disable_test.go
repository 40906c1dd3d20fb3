package labtest

import (
	"net/netip"
	"testing"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// three enables three mappings one after another, and returns a look at which
// of them bytes arrive by.
func three(t *testing.T) (home *lab.HomeNet, f *remote, reached func(want ...bool)) {
	t.Helper()
	home = lab.Home(t, lab.Router{})
	f = newForwarder(t, home.Lan, config{})
	var echoes []lab.Echo
	var mappings []*mapping
	for _, o := range []option{tcp(8081), udp(8082), tcp(8083)} {
		echo := home.Lan.Echo(t, o.Name, netip.AddrPortFrom(home.Lan.Addr(), o.Port).String())
		echoes, mappings = append(echoes, echo), append(mappings, f.enable(o))
	}
	return home, f, func(want ...bool) {
		t.Helper()
		n := 0
		for i, echo := range echoes {
			if want[i] {
				n++
				home.Reaches(t, echo, mappings[i].External)
			} else {
				home.DoesNotReach(t, echo, mappings[i].External)
			}
		}
		wantRules(t, home, n)
	}
}

func TestDisableStack(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disable the last enabled")
	home, f, reached := three(t)
	reached(true, true, true)
	f.disable()
	reached(true, true, false)
	f.disable()
	reached(true, false, false)
	f.disable()
	wantRules(t, home, 0)
	wantKinds(t, f.try(call{Op: "disable", Forwarder: f.n}).Failure.err(), forward.ErrNoMapping)
}

func TestDisableSelected(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disable by selector")
	home, f, reached := three(t)
	wantKinds(t, f.try(call{Op: "disable", Forwarder: f.n, Options: []option{tcp(8082)}}).Failure.err(), forward.ErrNoMapping)
	f.disable(tcp(8081))
	reached(false, true, true)
	f.disable(external(8082))
	reached(false, false, true)
	f.disable(tcp(0))
	wantRules(t, home, 0)
}

func TestDisableAll(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disable all")
	home, f, _ := three(t)
	other := neighbour(t, home, "tcp", 9000)
	if n := f.disableAll(tcp(0)); n != 2 {
		t.Errorf("%d taken away, want 2", n)
	}
	home.Reaches(t, other, at(home, 9000))
	if n := f.disableAll(); n != 1 {
		t.Errorf("%d taken away, want 1", n)
	}
	if n := f.disableAll(); n != 0 {
		t.Errorf("%d taken away, want none", n)
	}
	home.Reaches(t, other, at(home, 9000))
	wantRules(t, home, 1)
}
