package labtest

import (
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lab"
)

// TestShareForwarders checks two independent parts of a program that enable the same
// port.
func TestShareForwarders(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: two Forwarders of a process share a port")
	home := lab.Home(t, lab.Router{})
	a := start(t, home.Lan)
	one, two := a.forwarder(config{}), a.forwarder(config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := one.enable(tcp(8080))
	if n := two.enable(tcp(8080)); n.External != m.External {
		t.Errorf("external %v and %v, want the same", m.External, n.External)
	}
	wantRules(t, home, 1)
	got := two.try(call{Op: "enable", Forwarder: two.n, Options: []option{tcp(8080), external(9090)}})
	wantKinds(t, got.Failure.err(), backends.ErrConflict)
	home.Reaches(t, echo, m.External)
	one.close()
	home.Reaches(t, echo, m.External)
	wantRules(t, home, 1)
	two.close()
	home.DoesNotReach(t, echo, m.External)
	wantRules(t, home, 0)
}

// TestShareHost checks two programs on one host. Neither deletes the mapping of the
// other, and both restore their mappings after a restart.
func TestShareHost(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: two processes of a host, and a restart")
	home := lab.Home(t, lab.Router{})
	one, two := newForwarder(t, home.Lan, config{}), newForwarder(t, home.Lan, config{})
	first, second := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "tcp", ":8081")
	m, n := one.enable(tcp(8080)), two.enable(tcp(8081))
	home.Reaches(t, first, m.External)
	home.Reaches(t, second, n.External)

	home.Daemon.Kill(t)
	home.Daemon.Forget(t)
	home.DoesNotReach(t, first, m.External)
	home.DoesNotReach(t, second, n.External)
	home.Daemon.Start(t)
	t.Logf("the first mapping is restored after %v, the second %v later",
		waitReachable(t, home, first, m.External, maxWait), waitReachable(t, home, second, n.External, maxWait))

	one.close()
	home.DoesNotReach(t, first, m.External)
	home.Reaches(t, second, n.External)
	two.close()
	wantRules(t, home, 0)
}

// TestShareHome checks programs on two hosts that request the same external port.
func TestShareHome(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: two hosts want the same port")
	home := lab.Home(t, lab.Router{})
	host := home.Join("other", "192.168.77.3/24")
	one, two := newForwarder(t, home.Lan, config{}), newForwarder(t, host, config{})
	first, second := home.Lan.Echo(t, "tcp", ":8080"), host.Echo(t, "tcp", ":8080")
	m := one.enable(tcp(8080))
	home.Reaches(t, first, m.External)
	n := two.enable(tcp(8080))
	if m.External != externalAddr(home, 8080) || n.External == m.External {
		t.Errorf("external %v and %v", m.External, n.External)
	}
	home.Reaches(t, first, m.External)
	home.Reaches(t, second, n.External)
	one.disable()
	home.DoesNotReach(t, first, m.External)
	home.Reaches(t, second, n.External)
	two.disable()
	wantRules(t, home, 0)
}
