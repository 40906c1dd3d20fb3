package labtest

import (
	"testing"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// Every way to end takes all mappings away.
func TestEnd(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, f *remote){
		"Close":              func(_ *testing.T, f *remote) { f.close() },
		"Shutdown":           func(_ *testing.T, f *remote) { f.do(call{Op: "shutdown", Forwarder: f.n, Within: patience}) },
		"Close of a package": func(_ *testing.T, f *remote) { f.close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: ended by "+name)
			home := lab.Home(t, lab.Router{})
			f := newForwarder(t, home.Lan, config{Package: name == "Close of a package"})
			echo := home.Lan.Echo(t, "tcp", ":8081")
			f.enable(both(8080))
			m := f.enable(tcp(8081))
			f.enable(udp(8082), once) // left for its lifetime
			home.Reaches(t, echo, m.External)
			wantRules(t, home, 4)
			end(t, f)
			wantRules(t, home, 1)
			home.DoesNotReach(t, echo, m.External)
			if name == "Close of a package" {
				m = f.enable(tcp(8081)) // a new Forwarder
				home.Reaches(t, echo, m.External)
				end(t, f)
				wantRules(t, home, 1)
				return
			}
			f.refused([]error{forward.ErrClosed}, tcp(8081))
			end(t, f) // a second call does nothing
		})
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	for _, pkg := range []bool{false, true} {
		name := map[bool]string{false: "Forwarder", true: "package"}[pkg]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: Run of a "+name+", cancelled")
			home := lab.Home(t, lab.Router{})
			f := newForwarder(t, home.Lan, config{Package: pkg})
			echo := home.Lan.Echo(t, "tcp", ":8080")
			other := f.enable(udp(8081))
			f.event(forward.EventMapped)
			id := f.begin(call{Op: "run", Forwarder: f.n, Options: []option{tcp(8080)}})
			external := f.event(forward.EventMapped).External
			home.Reaches(t, echo, external)
			f.do(call{Op: "cancel", Cancel: id})
			if got := f.await(id); got.Failure != nil {
				t.Errorf("Run: %v", got.Failure)
			}
			home.DoesNotReach(t, echo, external)
			wantRules(t, home, 1)
			home.Reaches(t, home.Lan.Echo(t, "udp", ":8081"), other.External)
		})
	}
}

// What no program is left to take away goes when its lifetime has passed.
func TestKilled(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: killed, the mapping goes with its lifetime")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Lifetime: shortLease})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	home.Reaches(t, echo, m.External)
	f.proc.Kill()
	home.Reaches(t, echo, m.External)
	took := goes(t, home, echo, m.External, shortLease+3*time.Second)
	t.Logf("gone after %v", took)
	wantRules(t, home, 0)
}
