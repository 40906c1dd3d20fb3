package labtest

import (
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lab"
)

func TestTaken(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: a taken port, another is granted")
	home := lab.Home(t, lab.Router{})
	theirs := neighbour(t, home, "tcp", 8080)
	ours := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	if m.External.Port() == 8080 {
		t.Errorf("external %v, which is taken", m.External)
	}
	home.Reaches(t, ours, m.External)
	home.Reaches(t, theirs, at(home, 8080))
	wantRules(t, home, 2)
	f.disable()
	home.DoesNotReach(t, ours, m.External)
	home.Reaches(t, theirs, at(home, 8080))
	wantRules(t, home, 1)
}

func TestTakenExact(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: a taken port, exactly that one wanted")
	home := lab.Home(t, lab.Router{})
	theirs := neighbour(t, home, "tcp", 8080)
	f := newForwarder(t, home.Lan, config{})
	f.refused([]error{backends.ErrConflict}, tcp(8080), exact)
	wantRules(t, home, 1)
	f.refused([]error{backends.ErrConflict}, both(8080), exact)
	wantRules(t, home, 1)
	home.Reaches(t, theirs, at(home, 8080))

	// The same with a port that is free.
	ours := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080), external(8081), exact)
	home.Reaches(t, ours, m.External)
	if m.External != at(home, 8081) {
		t.Errorf("external %v, want exactly port 8081", m.External)
	}
}

func TestTakenBoth(t *testing.T) {
	t.Parallel()
	for _, half := range []string{"tcp", "udp"} {
		t.Run(half, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the "+half+" half of a unit is taken")
			home := lab.Home(t, lab.Router{})
			theirs := neighbour(t, home, half, 8080)
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(both(8080))
			if m.External.Port() == 8080 || len(m.Granted) != 2 || m.Granted[0].External != m.Granted[1].External {
				t.Errorf("granted %v, want one other port on both protocols", m.Granted)
			}
			home.Reaches(t, home.Lan.Echo(t, "tcp", ":8080"), m.External)
			home.Reaches(t, home.Lan.Echo(t, "udp", ":8080"), m.External)
			wantRules(t, home, 3)
			f.disable()
			wantRules(t, home, 1)
			home.Reaches(t, theirs, at(home, 8080))
		})
	}
}
