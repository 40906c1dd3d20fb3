package labtest

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// enableThree enables three mappings one after another. It returns a function that checks
// through which of them bytes arrive.
func enableThree(t *testing.T) (home *lab.HomeNet, f *remoteForwarder, reached func(want ...bool)) {
	t.Helper()
	home = lab.Home(t, lab.Router{})
	f = newForwarder(t, home.Lan, config{})
	var echoes []lab.Echo
	var mappings []*mapping
	for _, o := range []option{tcp(8081), udp(8082), tcp(8083)} {
		echo := home.Lan.Echo(t, o.Name, netip.AddrPortFrom(home.Lan.Addr(), o.Port).String())
		echoes, mappings = append(echoes, echo), append(mappings, f.enable(o))
	}
	return home, f, func(want ...bool) {
		t.Helper()
		n := 0
		for i, echo := range echoes {
			if want[i] {
				n++
				home.Reaches(t, echo, mappings[i].External)
			} else {
				home.DoesNotReach(t, echo, mappings[i].External)
			}
		}
		wantRules(t, home, n)
	}
}

func TestDisableStack(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disable the last enabled")
	home, f, reached := enableThree(t)
	reached(true, true, true)
	f.disable()
	reached(true, true, false)
	f.disable()
	reached(true, false, false)
	f.disable()
	wantRules(t, home, 0)
	wantKinds(t, f.try(call{Op: "disable", Forwarder: f.n}).Failure.err(), forward.ErrNoMapping)
}

func TestDisableSelected(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disable by selector")
	home, f, reached := enableThree(t)
	wantKinds(t, f.try(call{Op: "disable", Forwarder: f.n, Options: []option{tcp(8082)}}).Failure.err(), forward.ErrNoMapping)
	f.disable(tcp(8081))
	reached(false, true, true)
	f.disable(external(8082))
	reached(false, false, true)
	f.disable(tcp(0))
	wantRules(t, home, 0)
}

func TestDisableAll(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: disable all")
	home, f, _ := enableThree(t)
	other := occupyPort(t, home, "tcp", 9000)
	if n := f.disableAll(tcp(0)); n != 2 {
		t.Errorf("%d disabled, want 2", n)
	}
	home.Reaches(t, other, externalAddr(home, 9000))
	if n := f.disableAll(); n != 1 {
		t.Errorf("%d disabled, want 1", n)
	}
	if n := f.disableAll(); n != 0 {
		t.Errorf("%d disabled, want none", n)
	}
	home.Reaches(t, other, externalAddr(home, 9000))
	wantRules(t, home, 1)
}

// TestCloseDeletesAll checks that Close and Shutdown delete all mappings.
func TestCloseDeletesAll(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, f *remoteForwarder){
		"Close":              func(_ *testing.T, f *remoteForwarder) { f.close() },
		"Shutdown":           func(_ *testing.T, f *remoteForwarder) { f.do(call{Op: "shutdown", Forwarder: f.n, Within: maxWait}) },
		"Close of a package": func(_ *testing.T, f *remoteForwarder) { f.close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: ended by "+name)
			home := lab.Home(t, lab.Router{})
			f := newForwarder(t, home.Lan, config{Package: name == "Close of a package"})
			echo := home.Lan.Echo(t, "tcp", ":8081")
			f.enable(both(8080))
			m := f.enable(tcp(8081))
			f.enable(udp(8082), once) // stays until its lifetime ends
			home.Reaches(t, echo, m.External)
			wantRules(t, home, 4)
			end(t, f)
			wantRules(t, home, 1)
			home.DoesNotReach(t, echo, m.External)
			if name == "Close of a package" {
				m = f.enable(tcp(8081)) // this uses a new Forwarder
				home.Reaches(t, echo, m.External)
				end(t, f)
				wantRules(t, home, 1)
				return
			}
			f.wantEnableError([]error{forward.ErrClosed}, tcp(8081))
			end(t, f) // a second call does nothing
		})
	}
}

// TestCloseOfManyMappings checks that Close deletes fifty mappings, by each protocol, and
// leaves the mapping of another host.
func TestCloseOfManyMappings(t *testing.T) {
	t.Parallel()
	const count = 50
	for backend, router := range map[string]lab.Router{"natpmp": {NoPCP: true, NoUPnP: true}, "pcp": pcpOnly, "upnp": upnpOnly} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: fifty mappings closed, "+backend)
			home := lab.Home(t, router)
			neighbour := home.Join("neighbour", "192.168.77.3/24")
			echo := neighbour.Echo(t, "tcp", ":9000")
			other := newForwarder(t, neighbour, config{}).enable(tcp(9000))
			f := newForwarder(t, home.Lan, config{})
			for i := range uint16(count) {
				if m := f.enable(tcp(10000 + i)); m.Backend != backend {
					t.Fatalf("mapped by %s, want %s", m.Backend, backend)
				}
			}
			wantRules(t, home, count+1)
			f.close()
			wantRules(t, home, 1)
			home.Reaches(t, echo, other.External)
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
			f.wantEvent(forward.EventMapped)
			id := f.begin(call{Op: "run", Forwarder: f.n, Options: []option{tcp(8080)}})
			external := f.wantEvent(forward.EventMapped).External
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

// TestKilled checks that the mapping of a killed program is deleted when its lifetime
// ends.
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
	took := waitUnreachable(t, home, echo, m.External, shortLease+3*time.Second)
	t.Logf("deleted after %v", took)
	wantRules(t, home, 0)
}

const tolerance = 500 * time.Millisecond // how late a busy machine may be

// TestRouterStopsDuringRequest checks a router that replies to the probe and stops before it
// replies to the request.
func TestRouterStopsDuringRequest(t *testing.T) {
	t.Parallel()
	for _, dead := range []string{"silent", "refusing"} {
		t.Run(dead, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the router dies in mid-call, "+dead)
			home := lab.Home(t, lab.Router{})
			home.Router.Rule(t, "input", `iifname "lan0" tcp dport 5000 reject with tcp reset`) // UPnP must not replace the dropped requests
			const timeout = 4 * time.Second
			f := newForwarder(t, home.Lan, config{RequestTimeout: timeout})
			echo := home.Lan.Echo(t, "tcp", ":8080")
			drop := dropPackets(t, home, mapRequests)
			id := f.beginEnable(tcp(8080))
			drop.waitForDrops(t, 1)
			home.Daemon.Kill(t)
			if dead == "refusing" { // the port is closed when the next request arrives
				drop.remove(t)
			}
			got := f.await(id)
			t.Logf("the error was returned after %v", got.Took)
			wantKinds(t, got.Failure.err(), backends.ErrNoReply)
			wantNotKind(t, got.Failure.err(), forward.ErrNoGateway) // the gateway replied to the probe
			if got.Took > timeout+tolerance {
				t.Errorf("the error was returned after %v, want %v", got.Took, timeout)
			}
			if dead == "refusing" {
				wantKinds(t, got.Failure.err(), syscall.ECONNREFUSED)
			} else {
				drop.remove(t)
			}

			home.Daemon.Start(t)
			m := f.enable(tcp(8080))
			home.Reaches(t, echo, m.External)
			f.close()
			wantRules(t, home, 0)
		})
	}
}

// TestCloseWithoutRouter checks that Close returns within its timeout if the router does not
// reply. Its error names the mappings that remain on the router.
func TestCloseWithoutRouter(t *testing.T) {
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
					t.Errorf("the error does not name %s as remaining on the gateway", what)
				}
			}
			if got.Took > 2*time.Second+tolerance {
				t.Errorf("Close took %v", got.Took)
			}
			f.exit()
		})
	}
}

// TestShutdownSilent checks that Shutdown returns when its context ends, with an error.
func TestShutdownSilent(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: shut down while the router is silent")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	f.enable(both(8080))
	home.Router.Rule(t, "input", `iifname "lan0" drop`)
	got := f.try(call{Op: "shutdown", Forwarder: f.n, Within: time.Second})
	t.Logf("Shutdown returned after %v", got.Took)
	wantKinds(t, got.Failure.err())
	if got.Took > time.Second+tolerance {
		t.Errorf("Shutdown took %v, but its context ended after one second", got.Took)
	}
}
