package labtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// The loop of those whose VPN hands out a port: the gateway refuses, then grants,
// then starts anew and hands out another port, since another host has taken the
// first. Each port is told once, to the hook too.
func TestVPNLoop(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: the loop of VPN users, with a hook")
	home := lab.Home(t, lab.Router{NoUPnP: true})
	byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	told := filepath.Join(t.TempDir(), "told")
	refusal := home.Router.Rule(t, "input", `iifname "lan0" udp dport 5351 reject`)
	c := goforward(t, home.Lan, "map", "8080", "--same-port", "--protocol", "both", "--gateway", home.Gateway.String(),
		"--lifetime", "60", "--hold", "--wait", "--exec",
		`sh -c 'echo $GOFORWARD_EVENT $GOFORWARD_EXTERNAL_IP:$GOFORWARD_EXTERNAL_PORT $GOFORWARD_PREVIOUS_PORT >>`+told+`'`)
	lines := func() []string {
		b, _ := os.ReadFile(told)
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	refusal.Remove(t)
	until(t, patience, "the hook does not run", func() bool { return lines()[0] != "" })
	home.Reaches(t, byTCP, at(home, 8080))
	home.Reaches(t, byUDP, at(home, 8080))

	die(t, home)
	kept := home.Router.Rule(t, "input", `iifname "lan0" ip saddr 192.168.77.2 udp dport 5351 drop`)
	home.Daemon.Start(t)
	neighbour(t, home, "tcp", 8080)
	kept.Remove(t)
	until(t, 2*patience, "the hook does not run again", func() bool { return len(lines()) > 1 })
	home.Reaches(t, home.Lan.Echo(t, "tcp", ":8081"), at(home, 8081))
	home.Reaches(t, home.Lan.Echo(t, "udp", ":8081"), at(home, 8081))
	want := []string{"mapped 45.45.45.1:8080", "changed 45.45.45.1:8081 8080"}
	if got := lines(); len(got) != 2 || strings.TrimSpace(got[0]) != want[0] || got[1] != want[1] {
		t.Errorf("the hook was told %q, want %q", got, want)
	}
	wantRules(t, home, 3)
	c.Signal(os.Interrupt)
	c.Wait()
	wantRules(t, home, 1)
}
