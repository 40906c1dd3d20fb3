package lab_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// mapTCP maps external port 8080 to port 80 of the host, by Debian's natpmpc.
func mapTCP(t *testing.T, home *lab.HomeNet, host *lab.Host) netip.AddrPort {
	t.Helper()
	out := host.Exec(t, "natpmpc", "-g", home.Gateway.String(), "-a", "8080", "80", "tcp", "600")
	if !strings.Contains(out, "Mapped public port 8080") {
		t.Fatalf("natpmpc: %s", out)
	}
	return netip.AddrPortFrom(home.External, 8080)
}

func TestRouting(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: masquerade")
	home := lab.Home(t, lab.Router{})
	for _, network := range []string{"tcp", "udp"} {
		echo := home.Wan.Echo(t, network, ":7")
		peer, err := home.Lan.Reach(echo, echo.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if peer.Addr() != home.External {
			t.Errorf("the server outside received bytes from %v, want the router's %v", peer, home.External)
		}
	}
}

func TestMapTCP(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: natpmpc maps TCP")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":80")
	home.DoesNotReach(t, echo, netip.AddrPortFrom(home.External, 8080))
	if rules := home.Rules(t); len(rules) != 0 {
		t.Errorf("rules of a new router: %q", rules)
	}

	external := mapTCP(t, home, home.Lan)
	if peer := home.Reaches(t, echo, external); peer.Addr() != home.Wan.Addr() {
		t.Errorf("the server received bytes from %v, want %v", peer, home.Wan.Addr())
	}
	if rules := home.Rules(t); len(rules) != 1 || !strings.Contains(rules[0], "8080") {
		t.Errorf("rules: %q, want one for port 8080", rules)
	}
	reply, err := home.Wan.SendTCP(t, external, "hello")
	if err != nil || !strings.HasPrefix(reply, echo.Token) || !strings.HasSuffix(reply, "hello") {
		t.Errorf("SendTCP: %q, %v", reply, err)
	}

	// Reach must not accept the reply of another server on the same port.
	other := echo
	other.Token = "another"
	if _, err := home.Wan.Reach(other, external); err == nil {
		t.Error("the reply of another server was accepted")
	}
}

func TestMapUDP(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: upnpc maps UDP")
	home := lab.Home(t, lab.Router{NoNATPMP: true, NoPCP: true})
	echo := home.Lan.Echo(t, "udp", ":5353")
	external := netip.AddrPortFrom(home.External, 9000)
	home.DoesNotReach(t, echo, external)
	home.Lan.Exec(t, "upnpc", "-a", home.Lan.Addr().String(), "5353", "9000", "UDP", "600")
	home.Reaches(t, echo, external)
	reply, err := home.Wan.SendUDP(t, external, "hello")
	if err != nil || !strings.HasPrefix(reply, echo.Token) || !strings.HasSuffix(reply, "hello") {
		t.Errorf("SendUDP: %q, %v", reply, err)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: restart loses mappings")
	home := lab.Home(t, lab.Router{DaemonUptime: true})
	echo := home.Lan.Echo(t, "tcp", ":80")
	external := mapTCP(t, home, home.Lan)
	home.Reaches(t, echo, external)

	home.Daemon.Kill(t)
	home.Reaches(t, echo, external) // the rules work without the daemon
	home.Daemon.Restart(t)
	home.DoesNotReach(t, echo, external)
	if rules := home.Rules(t); len(rules) != 0 {
		t.Errorf("rules after the restart: %q", rules)
	}

	mapTCP(t, home, home.Lan)
	home.Reaches(t, echo, external)
	home.Router.Nft(t, "flush chain inet filter miniupnpd")
	home.DoesNotReach(t, echo, external) // no reply; above, the connection was refused
	home.Daemon.Stop(t)
	home.Daemon.Start(t)
}

func TestNeighbour(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: second host")
	home := lab.Home(t, lab.Router{})
	printer := home.Join("printer", "192.168.77.3/24")
	echo := printer.Echo(t, "tcp", ":80")
	if peer, err := home.Lan.Reach(echo, echo.Addr); err != nil || peer.Addr() != home.Lan.Addr() {
		t.Errorf("through the switch: %v, %v", peer, err)
	}
	external := mapTCP(t, home, printer)
	home.Reaches(t, echo, external)
	out := home.Lan.Exec(t, "natpmpc", "-g", home.Gateway.String(), "-a", "8080", "80", "tcp", "600")
	if !strings.Contains(out, "Mapped public port 8081") {
		t.Errorf("a taken port: %s", out)
	}
}

func TestRouterVariants(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: router variants")
	t.Run("private WAN", func(t *testing.T) {
		t.Parallel()
		home := lab.Home(t, lab.Router{WAN: netip.MustParsePrefix("10.66.66.1/24")})
		if out, err := home.Lan.Run(t.Context(), "natpmpc", "-g", "192.168.77.1", "-a", "1", "1", "tcp", "60"); err == nil {
			t.Errorf("natpmpc behind a private WAN: %s", out)
		}
		echo := home.Wan.Echo(t, "tcp", ":7")
		if _, err := home.Lan.Reach(echo, echo.Addr); err != nil {
			t.Error(err)
		}
	})
	t.Run("low ports denied", func(t *testing.T) {
		t.Parallel()
		home := lab.Home(t, lab.Router{DenyLowPorts: true, MinLifetime: 20 * time.Second})
		out := home.Lan.Exec(t, "natpmpc", "-g", "192.168.77.1", "-a", "80", "80", "tcp", "60")
		if !strings.Contains(out, "Mapped public port 1024") {
			t.Errorf("natpmpc: %s", out)
		}
	})
	t.Run("no UPnP", func(t *testing.T) {
		t.Parallel()
		home := lab.Home(t, lab.Router{NoUPnP: true, ExtraConf: []string{"ext_ip=45.45.45.99"}})
		conn, err := home.Lan.Dial(t.Context(), "tcp", "192.168.77.1:5000")
		if err == nil {
			conn.Close()
			t.Error("the UPnP control port is open")
		}
		out := home.Lan.Exec(t, "natpmpc", "-g", "192.168.77.1")
		if !strings.Contains(out, "45.45.45.99") {
			t.Errorf("natpmpc with ext_ip: %s", out)
		}
	})
}
