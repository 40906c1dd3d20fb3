package labtest

import (
	"net/netip"
	"syscall"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

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
