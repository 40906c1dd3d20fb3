package labtest

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// echoServers are the echo servers in the lan host, by external address.
type echoServers map[netip.AddrPort][]lab.Echo

// add starts a server on an internal port.
func (s echoServers) add(t *testing.T, home *lab.HomeNet, network string, internal uint16, external netip.AddrPort) {
	t.Helper()
	s[external] = append(s[external], home.Lan.Echo(t, network, ":"+strconv.Itoa(int(internal))))
}

// reach checks that bytes from outside arrive at all servers.
func (s echoServers) reach(t *testing.T, home *lab.HomeNet) {
	t.Helper()
	for external, echoes := range s {
		for _, echo := range echoes {
			home.Reaches(t, echo, external)
		}
	}
}

// TestCommandHoldPorts checks that one map --hold keeps several ports and a range, creates all of
// them again after a restart of the router, and deletes all of them at its end.
func TestCommandHoldPorts(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: map --hold, several ports and a range, the router restarts")
	home := lab.Home(t, lab.Router{DaemonUptime: true})
	servers := echoServers{}
	var want []string
	for port, networks := range map[uint16][]string{
		8080: {"tcp"}, 8081: {"tcp"}, 27015: {"tcp", "udp"}, 27016: {"tcp", "udp"}, 27017: {"tcp", "udp"},
	} {
		external := externalAddr(home, port)
		want = append(want, external.String())
		for _, network := range networks {
			servers.add(t, home, network, port, external)
		}
	}
	slices.Sort(want)
	c := goforward(t, home.Lan, "map", "8080", "8081", "27015-27017/both", "--hold")
	wantEndpoints := func(when string) {
		t.Helper()
		var got []string
		for range want {
			got = append(got, c.readLine())
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: printed %q, want %q", when, got, want)
		}
		servers.reach(t, home)
		wantRules(t, home, 8)
	}
	wantEndpoints("at first")
	waitForEpoch(t, home)
	powerOff(t, home)
	home.Daemon.Start(t)
	wantEndpoints("after the restart")
	c.Signal(os.Interrupt)
	c.wantExit(0)
	wantRules(t, home, 0)
}

// TestCommandAsOne checks that map --as-one maps a range with one offset if another host has a
// port of it. If the external ports are required, it maps none of them.
func TestCommandAsOne(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cli: map --as-one, a port of the range is taken, "+backend)
			home := lab.Home(t, lab.Router{})
			occupyPort(t, home, "tcp", 27016)
			args := []string{"map", "27015-27017", "--as-one", "--backend", backend}
			goforward(t, home.Lan, append(args, "--exact")...).wantExit(5)
			wantRules(t, home, 1)
			c := goforward(t, home.Lan, append(args, "--hold")...)
			first, last, isRange := strings.Cut(c.readLine(), "-")
			external, err := netip.ParseAddrPort(first)
			if err != nil || !isRange || last != strconv.Itoa(int(external.Port())+2) || external.Addr() != home.External {
				t.Fatalf("printed %s-%s, %v, want the external range", first, last, err)
			}
			servers := echoServers{}
			for i := range uint16(3) {
				servers.add(t, home, "tcp", 27015+i, externalAddr(home, external.Port()+i))
			}
			servers.reach(t, home)
			wantRules(t, home, 4)
			c.Signal(os.Interrupt)
			c.wantExit(0)
			wantRules(t, home, 1)
		})
	}
}
