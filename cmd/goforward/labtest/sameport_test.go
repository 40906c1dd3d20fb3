package labtest

import (
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

func TestSamePort(t *testing.T) {
	t.Parallel()
	for _, o := range []option{tcp(8080), both(8080)} {
		t.Run(o.Name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: a taken port, one number inside and outside, "+o.Name)
			home := lab.Home(t, lab.Router{})
			neighbour(t, home, "tcp", 8080)
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(o, samePort)
			if m.External.Port() == 8080 || m.External.Port() != m.Internal.Port() {
				t.Fatalf("%v → %v, want one other number", m.External, m.Internal)
			}
			home.Reaches(t, home.Lan.Echo(t, "tcp", m.Internal.String()), m.External)
			wantRules(t, home, 1+len(m.Granted)) // what was tried is given back
			f.disable()
			wantRules(t, home, 1)
		})
	}
}
