package labtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// wineEnv names the directory that .ci/wine has prepared, with the files of Wine and the
// programs for Windows. Without it, TestWine is skipped.
const wineEnv = "GOFORWARD_WINE"

// The programs of Debian's package wine64.
const (
	wineProgram = "/usr/lib/wine/wine64"
	wineServer  = "/usr/lib/wine/wineserver64"
)

// TestWine runs the command, compiled for Windows, under Wine. It logs the commands and
// their output. The scenarios share the files of Wine, so they do not run in parallel.
func TestWine(t *testing.T) {
	dir := os.Getenv(wineEnv)
	if dir == "" {
		t.Skipf("a part of make nightly: %s is not set; .ci/wine sets it", wineEnv)
	}
	run := func(name string, test func(w *wine)) {
		t.Run(name, func(t *testing.T) {
			lab.Scenario(t, "wine: "+name)
			test(newWine(t, dir))
		})
	}
	run("the functions of Windows that find routes", testWineDiscover)
	run("the table of sockets, and connections that are examined", testWineReach)
	run("demo", testWineDemo)
	run("gateways", testWineGateways)
	run("the default route changes", testWineRoute)
	for _, backend := range []string{"natpmp", "pcp", "upnp"} {
		run("map, list, unmap, "+backend, func(w *wine) { testWineMap(w, backend) })
		run("map --hold, the router restarts, "+backend, func(w *wine) { testWineHold(w, backend) })
		run("watch, the router restarts, "+backend, func(w *wine) { testWineWatch(w, backend) })
	}
}

// wine runs programs for Windows in the lan host of a home.
type wine struct {
	*testing.T
	home   *lab.HomeNet
	dir    string // the directory with the programs
	prefix string // the directory with the files of Wine
}

// newWine builds a home. The server process of Wine opens the sockets of all programs, and
// so it must run in this home.
func newWine(t *testing.T, dir string) *wine {
	t.Helper()
	w := &wine{T: t, home: lab.Home(t, lab.Router{DaemonUptime: true}), dir: dir, prefix: filepath.Join(dir, "prefix")}
	w.stopServer()
	t.Cleanup(w.stopServer)
	return w
}

// stopServer stops the server of Wine, if it runs, and all programs under it.
func (w *wine) stopServer() {
	w.Helper()
	w.home.Lan.Exec(w.T, "sh", "-c", `export WINEPREFIX="$0"; "$1" -k; "$1" -w`, w.prefix, wineServer)
}

// start starts a program for Windows.
func (w *wine) start(program string, args ...string) *commandProcess {
	w.Helper()
	w.Logf("> %s %s", program, strings.Join(args, " "))
	line := append([]string{
		"--default-signal=HUP,INT,TERM", "WINEPREFIX=" + w.prefix, "WINEDEBUG=-all",
		wineProgram, filepath.Join(w.dir, program),
	}, args...)
	p := &commandProcess{t: w.T, cmd: w.home.Lan.Command(w.Context(), "env", line...)}
	r, out, err := os.Pipe()
	if err != nil {
		w.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = out, &p.stderr
	p.start(r, out)
	return p
}

// run runs a program, which must succeed, and returns its standard output.
func (w *wine) run(program string, args ...string) string {
	w.Helper()
	p := w.start(program, args...)
	out, err := io.ReadAll(p.out)
	if err != nil {
		w.Fatal(err)
	}
	w.Logf("\n%s%s", out, p.wantExit(0))
	return string(out)
}

func (w *wine) goforward(args ...string) string {
	w.Helper()
	return w.run("goforward.exe", args...)
}

// wantEvent reads a line of JSON, which must have this event, and returns its gateway.
func (w *wine) wantEvent(p *commandProcess, want string) (gateway string) {
	w.Helper()
	var e struct{ Event, Gateway string }
	line := strings.TrimSpace(p.readLine())
	w.Log(line)
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		w.Fatal(err)
	}
	if e.Event != want {
		w.Fatalf("want the event %s", want)
	}
	return e.Gateway
}

// pressCtrlC ends a command: Wine delivers SIGINT as Ctrl-C. The command must exit with
// code 0.
func (w *wine) pressCtrlC(p *commandProcess) {
	w.Helper()
	w.Log("^C")
	p.signal(syscall.SIGINT)
	w.Logf("\n%s", p.wantExit(0))
}

// testWineDiscover runs the tests of discover that call the system.
func testWineDiscover(w *wine) {
	out := w.run("discover.test.exe", "-test.v", "-test.run=TestSystem|TestCallMissing|TestRouteArguments|TestWatch|TestSnapshot")
	for _, name := range []string{"TestSystem", "TestCallMissing"} {
		if !strings.Contains(out, "--- PASS: "+name) {
			w.Errorf("%s did not pass", name)
		}
	}
}

// testWineReach runs the tests of reach and internal/catch that call the system.
func testWineReach(w *wine) {
	for program, tests := range map[string][]string{
		"reach.test.exe": {"TestListeners", "TestMeasureListeningLAN", "TestPortTemporary", "TestPortOther", "TestPortClose"},
		"catch.test.exe": {"TestConnCaught", "TestConnLeft", "TestConnSilent", "TestConnClosed"},
	} {
		out := w.run(program, "-test.v", "-test.run=^("+strings.Join(tests, "|")+")$")
		for _, name := range tests {
			if !strings.Contains(out, "--- PASS: "+name+" ") {
				w.Errorf("%s did not pass", name)
			}
		}
	}
}

// testWineDemo checks the simulated router, with its traffic, all in one program.
func testWineDemo(w *wine) {
	if out := w.goforward("demo"); strings.Count(out, `"hello from behind the router"`) != 2 {
		w.Error("the visitor did not receive the page before and after the restart")
	}
	wantRules(w.T, w.home, 0)
}

// testWineGateways checks that the gateway is found in the routing table.
func testWineGateways(w *wine) {
	w.goforward("gateways")
	out := w.goforward("gateways", "--json")
	var e struct {
		Gateway, Interface, Local string
		Used                      bool
		Protocols                 map[string]struct{ Speaks string }
	}
	first, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(first), &e); err != nil {
		w.Fatal(err)
	}
	if e.Gateway != w.home.Gateway.String() || e.Local != w.home.Lan.Addr().String() || e.Interface != "eth0" || !e.Used {
		w.Errorf("%+v, want %v", e, w.home.Gateway)
	}
	for _, protocol := range []string{"natpmp", "pcp", "upnp"} {
		if e.Protocols[protocol].Speaks != "yes" {
			w.Errorf("%s: %+v", protocol, e.Protocols[protocol])
		}
	}
}

// testWineRoute checks that a mapping follows the default route to another router. Wine
// does not notify of the change, so the routes are polled.
func testWineRoute(w *wine) {
	other := w.home.SecondRouter(w.T, lab.Router{WAN: netip.MustParsePrefix("46.46.46.1/24")})
	echo := w.home.Lan.Echo(w.T, "tcp", ":8080")
	p := w.start("goforward.exe", "map", "8080", "--hold", "--json", "--backend", "natpmp")
	w.wantEvent(p, "mapped")
	w.home.Reaches(w.T, echo, externalAddr(w.home, 8080))
	w.Logf("# ip route replace default via %v", other.Gateway)
	w.home.Lan.Exec(w.T, "ip", "route", "replace", "default", "via", other.Gateway.String())
	w.wantEvent(p, "lost")
	if gateway, want := w.wantEvent(p, "restored"), other.Gateway.String()+":5351"; gateway != want {
		w.Errorf("restored by %s, want %s", gateway, want)
	}
	other.Reaches(w.T, echo, externalAddr(other, 8080))
	w.pressCtrlC(p)
	wantRules(w.T, other, 0)
	wantRules(w.T, w.home, 0)
}

// testWineMap checks that the command maps a port by a protocol, and that other processes
// list and delete the mapping.
func testWineMap(w *wine, backend string) {
	byTCP, byUDP := w.home.Lan.Echo(w.T, "tcp", ":8080"), w.home.Lan.Echo(w.T, "udp", ":8080")
	external, err := netip.ParseAddrPort(strings.TrimSpace(w.goforward("map", "80:8080/both", "--backend", backend)))
	if err != nil || external != externalAddr(w.home, 80) {
		w.Fatalf("%v, %v", external, err)
	}
	w.home.Reaches(w.T, byTCP, external)
	w.home.Reaches(w.T, byUDP, external)
	wantRules(w.T, w.home, 2)
	mapped := fmt.Sprintf("%v  %v", external, addrPort(w.home.Lan, 8080))
	if list := w.goforward("list"); strings.Count(list, mapped) != 2 {
		w.Errorf("list does not show %q twice", mapped)
	}
	w.goforward("unmap", "80:8080/both", "--backend", backend)
	w.home.DoesNotReach(w.T, byTCP, external)
	w.home.DoesNotReach(w.T, byUDP, external)
	wantRules(w.T, w.home, 0)
}

// testWineHold checks that the mapping is restored after the router restarts, and that it
// is deleted at the end of --hold.
func testWineHold(w *wine, backend string) {
	echo, external := w.home.Lan.Echo(w.T, "tcp", ":8080"), externalAddr(w.home, 8080)
	p := w.start("goforward.exe", "map", "8080", "--hold", "--json", "--backend", backend)
	w.wantEvent(p, "mapped")
	w.home.Reaches(w.T, echo, external)
	waitForEpoch(w.T, w.home)
	powerOff(w.T, w.home)
	w.home.DoesNotReach(w.T, echo, external)
	w.Log("# the router restarts")
	w.home.Daemon.Start(w.T)
	w.wantEvent(p, "lost")
	w.wantEvent(p, "restored")
	w.home.Reaches(w.T, echo, external)
	w.pressCtrlC(p)
	w.home.DoesNotReach(w.T, echo, external)
	wantRules(w.T, w.home, 0)
}

// testWineWatch checks that watch reports a restart.
func testWineWatch(w *wine, backend string) {
	p := w.start("goforward.exe", "watch", "--json", "--backend", backend)
	w.wantEvent(p, "gateway")
	w.wantEvent(p, "address")
	waitForEpoch(w.T, w.home)
	w.Log("# the router restarts")
	w.home.Daemon.Kill(w.T)
	w.home.Daemon.Start(w.T)
	w.wantEvent(p, "restarted")
	w.pressCtrlC(p)
}
