package labtest

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/cmd/goforward/internal/cli"
	"github.com/natforward/goforward/internal/lab"
)

// goforwardProgram runs the command line program. It sends the output and the exit code
// to the test.
var goforwardProgram = lab.Func("goforward", func(p *lab.Proc) {
	var line commandLine
	p.Args(&line)
	// The command stores the key of the nonces there, and the protocols of gateways.
	if err := os.Setenv("XDG_STATE_HOME", line.StateDir); err != nil {
		p.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := cli.Run(ctx, line.Args, &lineSender{proc: p}, os.Stderr)
	p.Send(outputMessage{Exit: &code})
})

// commandLine has the arguments of the command, and the directory for its state.
type commandLine struct {
	StateDir string
	Args     []string
}

// outputMessage is a line of standard output, or the exit code.
type outputMessage struct {
	Line string `json:",omitempty"`
	Exit *int   `json:",omitempty"`
}

// lineSender sends each line that is written to it to the test.
type lineSender struct {
	proc *lab.Proc
	rest string
}

func (l *lineSender) Write(b []byte) (int, error) {
	l.rest += string(b)
	for {
		line, rest, complete := strings.Cut(l.rest, "\n")
		if !complete {
			return len(b), nil
		}
		l.proc.Send(outputMessage{Line: line})
		l.rest = rest
	}
}

// command is a running goforward.
type command struct {
	*lab.Running
	t *testing.T
}

func goforward(t *testing.T, host *lab.Host, args ...string) *command {
	t.Helper()
	return &command{host.Start(t, goforwardProgram, commandLine{host.StateDir(), args}), t}
}

// readLine returns the next line of standard output.
func (c *command) readLine() string {
	c.t.Helper()
	var s outputMessage
	c.Expect(&s)
	if s.Exit != nil {
		c.t.Fatalf("exit code %d, but a line was expected", *s.Exit)
	}
	return s.Line
}

// readEndpoint reads a line that contains an address and a port.
func (c *command) readEndpoint() netip.AddrPort {
	c.t.Helper()
	ap, err := netip.ParseAddrPort(c.readLine())
	if err != nil {
		c.t.Fatal(err)
	}
	return ap
}

// wantExit waits until the command exits, which must be with this code.
func (c *command) wantExit(code int) {
	c.t.Helper()
	var s outputMessage
	c.Expect(&s)
	if s.Exit == nil || *s.Exit != code {
		c.t.Errorf("got %+v, want exit code %d", s, code)
	}
	c.Wait()
}

func TestCommandHold(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]os.Signal{"interrupt": os.Interrupt, "terminate": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cli: map --hold, "+name)
			home := lab.Home(t, lab.Router{})
			echo := home.Lan.Echo(t, "tcp", ":8080")
			c := goforward(t, home.Lan, "map", "80:8080", "--hold")
			external := c.readEndpoint()
			if external != externalAddr(home, 80) {
				t.Errorf("printed %v, want port 80", external)
			}
			home.Reaches(t, echo, external)
			c.Signal(sig)
			c.wantExit(0)
			home.DoesNotReach(t, echo, external)
			wantRules(t, home, 0)
		})
	}
}

func TestCommandHoldRestart(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: map --hold --json, the router restarts")
	home := lab.Home(t, lab.Router{DaemonUptime: true})
	byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	c := goforward(t, home.Lan, "map", "8080/both", "--hold", "--json")
	event := func(want string) {
		t.Helper()
		for _, protocol := range []string{"tcp", "udp"} {
			var got struct {
				Event, Protocol string
				External        struct {
					IP   netip.Addr
					Port uint16
				}
			}
			line := c.readLine()
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if got.Event != want || got.Protocol != protocol || netip.AddrPortFrom(got.External.IP, got.External.Port) != externalAddr(home, 8080) {
				t.Errorf("printed %s, want %s %s", line, want, protocol)
			}
		}
	}
	event("mapped")
	home.Reaches(t, byTCP, externalAddr(home, 8080))
	home.Reaches(t, byUDP, externalAddr(home, 8080))
	waitForEpoch(t, home)
	powerOff(t, home)
	home.DoesNotReach(t, byTCP, externalAddr(home, 8080))
	home.Daemon.Start(t)
	event("lost")
	event("restored")
	home.Reaches(t, byTCP, externalAddr(home, 8080))
	home.Reaches(t, byUDP, externalAddr(home, 8080))
	c.Signal(os.Interrupt)
	event("unmapped")
	c.wantExit(0)
	wantRules(t, home, 0)
}

// TestCommandUnmap checks that one process can delete what another process has mapped.
func TestCommandUnmap(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: map, then unmap")
	home := lab.Home(t, lab.Router{})
	neighbourEcho := occupyPort(t, home, "tcp", 9000)
	byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	c := goforward(t, home.Lan, "map", "8080/both")
	external := c.readEndpoint()
	c.wantExit(0)
	home.Reaches(t, byTCP, external)
	home.Reaches(t, byUDP, external)

	goforward(t, home.Lan, "unmap", "8080/udp").wantExit(0)
	home.Reaches(t, byTCP, external)
	home.DoesNotReach(t, byUDP, external)
	goforward(t, home.Lan, "unmap", "8080").wantExit(0)
	home.DoesNotReach(t, byTCP, external)
	goforward(t, home.Lan, "unmap", "8080").wantExit(0) // it is deleted already
	wantRules(t, home, 1)
	home.Reaches(t, neighbourEcho, externalAddr(home, 9000))
}

// TestCommandUnmapPCP checks that one process can delete what another process has mapped
// by PCP. Its arguments contain neither the protocol nor the nonce of the mapping.
func TestCommandUnmapPCP(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		router lab.Router
		args   []string
	}{
		"there is no other":     {lab.Router{NoNATPMP: true}, []string{"map", "8080"}},
		"it was asked for":      {lab.Router{}, []string{"map", "8080", "--backend", "pcp"}},
		"nothing else could do": {lab.Router{}, []string{"map", "8080", "--from", "45.45.45.2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cli: map by PCP, then unmap, "+name)
			home := lab.Home(t, c.router)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			mapped := goforward(t, home.Lan, c.args...)
			external := mapped.readEndpoint()
			mapped.wantExit(0)
			home.Reaches(t, echo, external)
			wantRules(t, home, 1)
			goforward(t, home.Lan, "unmap", "8080").wantExit(0)
			wantRules(t, home, 0)
			home.DoesNotReach(t, echo, external)
		})
	}
}

// TestCommandKilled checks that the mapping of a killed command is deleted when its
// lifetime ends.
func TestCommandKilled(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: map --hold, killed")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	c := goforward(t, home.Lan, "map", "8080", "--hold", "--lifetime", "4")
	external := c.readEndpoint()
	home.Reaches(t, echo, external)
	c.Kill()
	home.Reaches(t, echo, external)
	took := waitUnreachable(t, home, echo, external, 8*time.Second)
	t.Logf("deleted after %v", took)
	wantRules(t, home, 0)
}

// TestCommandFails checks the exit codes that scripts rely on.
func TestCommandFails(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: exit codes")
	home := lab.Home(t, lab.Router{})
	occupyPort(t, home, "tcp", 8080)
	ip := goforward(t, home.Lan, "ip")
	if line := ip.readLine(); line != home.External.String() {
		t.Errorf("ip printed %s, want %v", line, home.External)
	}
	ip.wantExit(0)
	goforward(t, home.Lan, "map", "8080", "--exact").wantExit(5)
	goforward(t, home.Lan, "map", "8080", "-g", "192.168.77.3").wantExit(6) // the neighbour is not a router
	goforward(t, home.Lan, "map", "70000").wantExit(2)
	home.Router.Rule(t, "input", `iifname "lan0" udp dport 1900 drop`)
	goforward(t, home.Lan, "list").wantExit(1) // only UPnP can list mappings
	home.Daemon.Kill(t)
	goforward(t, home.Lan, "map", "8080").wantExit(3)
	home.Lan.Exec(t, "ip", "route", "del", "default")
	goforward(t, home.Lan, "map", "8080").wantExit(3)
	wantRules(t, home, 1)
}

// TestCommandNatpmpc checks that goforward deletes a mapping that Debian's natpmpc has
// created.
func TestCommandNatpmpc(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: a mapping made by natpmpc is taken away")
	home := lab.Home(t, lab.Router{})
	echo := home.Lan.Echo(t, "udp", ":6881")
	home.Lan.Exec(t, "natpmpc", "-g", home.Gateway.String(), "-a", "6881", "6881", "udp", "600")
	home.Reaches(t, echo, externalAddr(home, 6881))
	goforward(t, home.Lan, "unmap", "-u", "6881", "6881").wantExit(0)
	home.DoesNotReach(t, echo, externalAddr(home, 6881))
	wantRules(t, home, 0)
}

// TestExecAddress checks that the hook runs if the provider gives the router another
// address. If the router announces the change, the hook runs at once; with UPnP alone, it
// runs after the next renewal.
func TestExecAddress(t *testing.T) {
	t.Parallel()
	for backend, router := range map[string]lab.Router{"natpmp": {NoUPnP: true}, "pcp": pcpOnly, "upnp": upnpOnly} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cli: another external address, and the hook is told, "+backend)
			home := lab.Home(t, router)
			hookOutput := filepath.Join(t.TempDir(), "hook")
			port := filepath.Join(t.TempDir(), "port")
			c := goforward(t, home.Lan, "map", "8080", "--hold", "--lifetime", "8", "--port-file", port, "--exec",
				`sh -c 'echo $GOFORWARD_EVENT $GOFORWARD_EXTERNAL_IP:$GOFORWARD_EXTERNAL_PORT $GOFORWARD_BACKEND >>`+hookOutput+`'`)
			read := func(path string) string {
				b, _ := os.ReadFile(path)
				return string(b)
			}
			waitUntil(t, maxWait, "the hook does not run", func() bool { return read(hookOutput) != "" && read(port) == "8080\n" })
			changeAddress(t, home, "45.45.45.77/24")
			waitUntil(t, maxWait, "the hook does not run again", func() bool { return strings.Count(read(hookOutput), "\n") > 1 })
			if got, want := read(hookOutput), "mapped 45.45.45.1:8080 "+backend+"\nchanged 45.45.45.77:8080 "+backend+"\n"; got != want {
				t.Errorf("the hook received %q, want %q", got, want)
			}
			c.Signal(os.Interrupt)
			c.Wait()
			if _, err := os.Stat(port); err == nil {
				t.Error("the port file stays")
			}
			wantRules(t, home, 0)
		})
	}
}

// changeAddress replaces the external address of the router. Linux may delete the new address
// with the old one.
func changeAddress(t *testing.T, home *lab.HomeNet, addr string) {
	t.Helper()
	home.Router.Exec(t, "sh", "-ec", `ip addr add $0 dev wan0; ip addr del $1/24 dev wan0; ip addr show dev wan0 | grep -q $0 || ip addr add $0 dev wan0`,
		addr, home.External.String())
}

// TestVPNLoop checks the procedure of VPN users whose provider assigns a port. The
// gateway first refuses and then grants a port. Then it restarts and grants another port,
// because another host has taken the first one. Each port is reported once, to the hook
// too.
func TestVPNLoop(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: the loop of VPN users, with a hook")
	home := lab.Home(t, lab.Router{NoUPnP: true})
	byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
	hookOutput := filepath.Join(t.TempDir(), "hook")
	refusal := home.Router.Rule(t, "input", `iifname "lan0" udp dport 5351 reject`)
	c := goforward(t, home.Lan, "map", "8080", "--same-port", "--protocol", "both", "--gateway", home.Gateway.String(),
		"--lifetime", "60", "--hold", "--wait", "--exec",
		`sh -c 'echo $GOFORWARD_EVENT $GOFORWARD_EXTERNAL_IP:$GOFORWARD_EXTERNAL_PORT $GOFORWARD_PREVIOUS_PORT >>`+hookOutput+`'`)
	lines := func() []string {
		b, _ := os.ReadFile(hookOutput)
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	refusal.Remove(t)
	waitUntil(t, maxWait, "the hook does not run", func() bool { return lines()[0] != "" })
	home.Reaches(t, byTCP, externalAddr(home, 8080))
	home.Reaches(t, byUDP, externalAddr(home, 8080))

	powerOff(t, home)
	block := home.Router.Rule(t, "input", `iifname "lan0" ip saddr 192.168.77.2 udp dport 5351 drop`)
	home.Daemon.Start(t)
	occupyPort(t, home, "tcp", 8080)
	block.Remove(t)
	waitUntil(t, 2*maxWait, "the hook does not run again", func() bool { return len(lines()) > 1 })
	home.Reaches(t, home.Lan.Echo(t, "tcp", ":8081"), externalAddr(home, 8081))
	home.Reaches(t, home.Lan.Echo(t, "udp", ":8081"), externalAddr(home, 8081))
	want := []string{"mapped 45.45.45.1:8080", "changed 45.45.45.1:8081 8080"}
	if got := lines(); len(got) != 2 || strings.TrimSpace(got[0]) != want[0] || got[1] != want[1] {
		t.Errorf("the hook received %q, want %q", got, want)
	}
	wantRules(t, home, 3)
	c.Signal(os.Interrupt)
	c.Wait()
	wantRules(t, home, 1)
}
