package labtest

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

const slack = 500 * time.Millisecond // what a bound may be late by, on a busy machine

// The router answers that it is there, and dies before it answers the request.
func TestDiesInMidCall(t *testing.T) {
	t.Parallel()
	for _, dead := range []string{"silent", "refusing"} {
		t.Run(dead, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the router dies in mid-call, "+dead)
			home := lab.Home(t, lab.Router{})
			home.Router.Rule(t, "input", `iifname "lan0" tcp dport 5000 reject with tcp reset`) // no way around the trap
			const timeout = 4 * time.Second
			f := newForwarder(t, home.Lan, config{Timeout: timeout})
			echo := home.Lan.Echo(t, "tcp", ":8080")
			trap := setTrap(t, home, mapRequests)
			id := f.beginEnable(tcp(8080))
			trap.springs(t, 1)
			home.Daemon.Kill(t)
			if dead == "refusing" { // the next request meets a closed port
				trap.remove(t)
			}
			got := f.await(id)
			t.Logf("the error came after %v", got.Took)
			wantKinds(t, got.Failure.err(), backends.ErrNoReply)
			wantNotKind(t, got.Failure.err(), forward.ErrNoGateway) // there was one
			if got.Took > timeout+slack {
				t.Errorf("the error came after %v, want %v", got.Took, timeout)
			}
			if dead == "refusing" {
				wantKinds(t, got.Failure.err(), syscall.ECONNREFUSED)
			} else {
				trap.remove(t)
			}

			home.Daemon.Start(t)
			m := f.enable(tcp(8080))
			home.Reaches(t, echo, m.External)
			f.close()
			wantRules(t, home, 0)
		})
	}
}

// Close ends within its bound, whatever the router does, and its error names what
// remains on the router.
func TestCloseDead(t *testing.T) {
	t.Parallel()
	for _, dead := range []string{"killed", "silent", "cut off"} {
		t.Run(dead, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: closed while the router is "+dead)
			home := lab.Home(t, lab.Router{})
			f := newForwarder(t, home.Lan, config{})
			f.enable(both(8080))
			f.enable(tcp(8081))
			f.enable(udp(8082))
			switch dead {
			case "killed":
				home.Daemon.Kill(t)
			case "silent":
				home.Router.Rule(t, "input", `iifname "lan0" drop`)
			case "cut off":
				home.Lan.Exec(t, "ip", "link", "set", "eth0", "down")
			}
			got := f.try(call{Op: "close", Forwarder: f.n})
			t.Logf("closed after %v", got.Took)
			wantKinds(t, got.Failure.err(), backends.ErrNoReply)
			for _, what := range []string{"tcp port 8080", "udp port 8080", "tcp port 8081", "udp port 8082"} {
				if !strings.Contains(got.Failure.Text, what+" remains on the gateway") {
					t.Errorf("the error does not say that %s remains on the gateway", what)
				}
			}
			if got.Took > 2*time.Second+slack {
				t.Errorf("Close took %v", got.Took)
			}
			f.exit()
		})
	}
}

// Shutdown ends with its context, and its error names what remains on the router.
func TestShutdownSilent(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: shut down while the router is silent")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	f.enable(both(8080))
	home.Router.Rule(t, "input", `iifname "lan0" drop`)
	got := f.try(call{Op: "shutdown", Forwarder: f.n, Within: time.Second})
	t.Logf("after %v", got.Took)
	wantKinds(t, got.Failure.err())
	if got.Took > time.Second+slack {
		t.Errorf("Shutdown took %v, and its context one second", got.Took)
	}
}
