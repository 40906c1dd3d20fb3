package labtest

import (
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// Bytes arrive from Enable on, and no sooner, and until Disable, and no longer.
func TestEnable(t *testing.T) {
	t.Parallel()
	for name, networks := range map[string][]string{
		"tcp":  {"tcp"},
		"udp":  {"udp"},
		"both": {"tcp", "udp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: enable and disable "+name)
			home := lab.Home(t, lab.Router{})
			var echoes []lab.Echo
			for _, network := range networks {
				echoes = append(echoes, home.Lan.Echo(t, network, ":8080"))
			}
			for _, echo := range echoes {
				home.DoesNotReach(t, echo, at(home, 8080))
			}

			f := newForwarder(t, home.Lan, config{})
			m := f.enable(option{Name: name, Port: 8080})
			if m.External != at(home, 8080) || m.Internal != echoes[0].Addr || m.Scope != "public" ||
				m.Gateway.Addr() != home.Gateway || m.Backend != "natpmp" || len(m.Granted) != len(networks) {
				t.Errorf("%+v", m.state)
			}
			wantRules(t, home, len(networks))
			for _, echo := range echoes {
				home.Reaches(t, echo, m.External)
			}

			f.disable()
			wantRules(t, home, 0)
			for _, echo := range echoes {
				home.DoesNotReach(t, echo, m.External)
			}
			f.close()
			f.exit()
		})
	}
}

func TestEnableNothingNamed(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: enable a free port")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Package: true})
	m := f.enable()
	if m.Internal.Port() == 0 || m.Internal.Addr() != home.Lan.Addr() {
		t.Fatalf("internal %v", m.Internal)
	}
	echo := home.Lan.Echo(t, "tcp", m.Internal.String()) // the port is free
	home.Reaches(t, echo, m.External)
	wantRules(t, home, 1)
	f.disable()
	wantRules(t, home, 0)
	home.DoesNotReach(t, echo, m.External)
}

func TestEnableExternal(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: enable another external port")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080), external(80), exact)
	if m.External != at(home, 80) {
		t.Errorf("external %v, want port 80", m.External)
	}
	home.Reaches(t, echo, m.External)
	home.DoesNotReach(t, echo, at(home, 8080))
	m.close()
	wantRules(t, home, 0)
}

// Many callers at once, through the queue of one request at a time.
func TestEnableMany(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: enable many at once")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	const first, n = 8000, 40
	var ids []int
	for i := range uint16(n) {
		ids = append(ids, f.beginEnable(both(first+i)))
	}
	for _, id := range ids {
		m, err := f.enabled(f.await(id))
		if err != nil {
			t.Fatal(err)
		}
		if m.External.Port() != m.Internal.Port() {
			t.Errorf("%v → %v", m.External, m.Internal)
		}
		home.Reaches(t, home.Lan.Echo(t, "tcp", m.Internal.String()), m.External)
		home.Reaches(t, home.Lan.Echo(t, "udp", m.Internal.String()), m.External)
	}
	wantRules(t, home, 2*n)
	if got := f.disableAll(); got != n {
		t.Errorf("%d taken away, want %d", got, n)
	}
	wantRules(t, home, 0)
}

// Every second request is lost, and every third answer.
func TestEnableLoss(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: enable and disable over a link that loses packets")
	home := lab.Home(t, lab.Router{})
	home.Router.Rule(t, "input", `iifname "lan0" udp dport 5351 numgen inc mod 2 == 0 drop`)
	home.Router.Rule(t, "output", `oifname "lan0" udp sport 5351 numgen inc mod 3 == 0 drop`)
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(both(8080))
	home.Reaches(t, home.Lan.Echo(t, "tcp", ":8080"), m.External)
	home.Reaches(t, home.Lan.Echo(t, "udp", ":8080"), m.External)
	f.disable()
	wantRules(t, home, 0)
}
