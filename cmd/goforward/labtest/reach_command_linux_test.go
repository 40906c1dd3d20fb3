package labtest

import (
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// TestReachCommand verifies ports by the command with helpers on the wan host: goforward reflect,
// sshd and coturn.
func TestReachCommand(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: verify with helpers on the internet")
	home := lab.Home(t, lab.Router{IPv6: true})
	h := startHelpers(t, home, func(prober string) bool { return prober == "stun" || prober == "ssh" })
	reflector := execute(t, home.Wan, nil, "reflect")
	if line := reflector.readLine(); !strings.Contains(line, ":8099") {
		t.Fatalf("reflect printed %q", line)
	}
	url, url6 := "http://"+netip.AddrPortFrom(h.first, 8099).String(), "http://"+netip.AddrPortFrom(h.first6, 8099).String()
	home.Lan.Echo(t, "tcp", ":8080")
	home.Lan.Echo(t, "udp", ":8080")
	ssh := []string{"env", "PATH=" + h.ssh.path + ":" + os.Getenv("PATH")}
	verify := func(code int, want string, args ...string) {
		t.Helper()
		p := execute(t, home.Lan, ssh, append([]string{"verify"}, args...)...)
		verdict := p.readLine()
		evidence := p.wantExit(code)
		t.Logf("verify %v: %s%s", args, verdict, evidence)
		if word := map[int]string{0: " reachable", 7: " unreachable", 8: " unknown"}[code]; !strings.HasSuffix(strings.TrimSpace(verdict), word) || !strings.Contains(evidence, want) {
			t.Errorf("verify %v prints %q and\n%s, want %q with %q", args, verdict, evidence, word, want)
		}
		wantRules(t, home, 0)
	}
	verify(0, "from "+h.second.String(), "8080", "--via", url)
	verify(0, "from ["+h.second6.String()+"]", "8080", "-6", "--via", url6)
	verify(0, "from "+h.first.String(), "8080", "--via", "ssh:wanhost")
	// No program listens, so the port is unreachable, although the path to it works.
	verify(7, "a connection from the internet arrived", "9000/udp", "--via", "stun:"+h.first.String())
	verify(7, "a connection from the internet arrived", "9000/udp", "--via", "ssh:wanhost")
	// The datagrams of another program cannot be observed.
	verify(8, "cannot be observed", "8080/udp", "--via", url, "--via", "ssh:wanhost", "--via", "stun:"+h.first.String())
	// One helper is enough.
	verify(0, "from "+h.second.String(), "8080", "--via", "http://"+netip.AddrPortFrom(h.first, 9).String(), "--via", url)

	providerBlocks(t, &reachLab{home: home})
	verify(8, "http://"+netip.AddrPortFrom(h.first, 8099).String(), "8080", "--via", url)
	reflector.signal(syscall.SIGINT)
	reflector.wantExit(0)
}

// TestCommandReflect verifies ports with goforward reflect on the wan host: one that a program uses,
// one that no program uses, one that map requests, and one that the provider blocks after it was
// reached.
func TestCommandReflect(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "cli: verify --via a reflector")
	home := lab.Home(t, lab.Router{})
	first, second, _, _ := wanAddrs(t, home)
	listen := netip.AddrPortFrom(first, 8099)
	reflector := goforward(t, home.Wan, "reflect", "--listen", listen.String(), "--dial-from", second.String())
	if got := reflector.readEndpoint(); got != listen {
		t.Fatalf("the reflector listens on %v", got)
	}
	url := "http://" + listen.String()
	home.Lan.Echo(t, "tcp", ":8080")
	verify := func(code int, line string, args ...string) {
		t.Helper()
		c := goforward(t, home.Lan, args...)
		if got := c.readLine(); got != line {
			t.Errorf("%q: %q, want %q", args, got, line)
		}
		c.wantExit(code)
	}
	verify(0, "tcp 45.45.45.1:8080 reachable", "verify", "8080", "--via", url)
	verify(7, "udp 45.45.45.1:8081 unreachable", "verify", "8081/udp", "--via", url) // no program listens
	verify(8, "tcp 45.45.45.1:8080 unknown", "verify", "8080", "--via", "http://45.45.45.2:9")
	mapped := goforward(t, home.Lan, "map", "8080", "--verify="+url)
	for _, want := range []string{"45.45.45.1:8080", "tcp 45.45.45.1:8080 reachable"} {
		if got := mapped.readLine(); got != want {
			t.Errorf("map: %q, want %q", got, want)
		}
	}
	mapped.wantExit(0)
	goforward(t, home.Lan, "unmap", "8080").wantExit(0)
	wantRules(t, home, 0)
	watched := goforward(t, home.Lan, "verify", "8080", "--via", url, "--every", "10", "--no-repair")
	if got := watched.readLine(); got != "tcp 45.45.45.1:8080 reachable" {
		t.Errorf("watched: %q", got)
	}
	home.Wan.Nft(t, "table inet block { chain out { type filter hook output priority 0; tcp dport 8080 drop; }; }")
	if got := watched.readLine(); got != "tcp 45.45.45.1:8080 unreachable" {
		t.Errorf("blocked: %q", got)
	}
	watched.Signal(syscall.SIGINT)
	watched.wantExit(7)
	reflector.Signal(syscall.SIGTERM)
	reflector.wantExit(0)
}
