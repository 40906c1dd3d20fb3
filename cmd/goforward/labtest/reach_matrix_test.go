package labtest

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// reachTableFile is the variable that names the file to which TestReach appends its table.
const reachTableFile = "GOFORWARD_REACH_TABLE"

// reachPort is the port that the tests of reachability forward.
const reachPort = 8080

// reachLab is a home with a forwarded port, a second uplink, and captures of all links.
type reachLab struct {
	home    *lab.HomeNet
	uplink  *lab.Host // the router of the second uplink
	program *prober
	targets map[bool]reachTarget // over IPv6 or not
	links   []*lab.Capture       // of the LAN, the WAN and the second uplink
	helpers *reachHelpers        // on the wan host
}

// newReachLab maps the port over IPv4 and IPv6, for TCP and UDP.
func newReachLab(t *testing.T, u lab.Uplink) *reachLab {
	t.Helper()
	l := &reachLab{home: lab.Home(t, lab.Router{IPv6: true}), targets: map[bool]reachTarget{}}
	suppressAnnouncements(t, l.home)
	l.uplink = l.home.SecondUplink(t, u)
	f := newForwarder(t, l.home.Lan, config{CheckEvery: -1})
	for _, six := range []bool{false, true} {
		options := []option{{Name: "both", Port: reachPort}}
		if six {
			options = append(options, overIPv6)
		}
		m := f.enable(options...)
		if m.External.Port() != reachPort {
			t.Fatalf("the router granted port %v", m.External)
		}
		l.targets[six] = reachTarget{External: m.External, Internal: m.Internal, Gateway: m.Gateway.Addr(), Interface: "eth0"}
	}
	l.links = []*lab.Capture{l.home.Lan.Capture(t, "eth0"), l.home.Router.Capture(t, "wan0"), l.home.Lan.Capture(t, "eth1")}
	l.program = startProber(t, l.home.Lan)
	return l
}

// open opens the sockets of a path. The socket of a service belongs to another process.
func (l *reachLab) open(t *testing.T, socket string) {
	t.Helper()
	if socket == "" {
		l.program.call(reachCall{Op: "open", Network: "tcp", Address: fmt.Sprintf(":%d", reachPort)}, nil)
		for six, network := range map[bool]string{false: "udp4", true: "udp6"} { // bound, so that it sends from this address
			l.program.call(reachCall{Op: "open", Network: network, Address: l.targets[six].Internal.String()}, nil)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		switch socket {
		case "service":
			l.home.Lan.Echo(t, network, fmt.Sprintf(":%d", reachPort))
		case "loopback":
			l.home.Lan.Echo(t, network, fmt.Sprintf("127.0.0.1:%d", reachPort))
			l.home.Lan.Echo(t, network, fmt.Sprintf("[::1]:%d", reachPort))
		}
	}
}

// useSSH makes the program use the configuration of the helper for ssh, if there is one.
func (l *reachLab) useSSH() {
	if l.helpers.ssh.path != "" {
		l.program.call(reachCall{Op: "path", Address: l.helpers.ssh.path}, nil)
	}
}

// answers reports whether the program or the service answers to the internet.
func (l *reachLab) answers(t *testing.T, network string, six bool) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := l.home.Wan.Dial(ctx, network, l.targets[six].External.String())
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return false
	}
	n, err := conn.Read(make([]byte, 100))
	return err == nil && n > 0
}

// reachCell is a measurement: a prober with a network and a version of IP.
type reachCell struct {
	prober, network string
	six             bool
}

// reachProbers are the columns of the table.
var reachProbers = []string{"listening", "router", "hairpin", "path", "phone", "visit", "reflector", "stun", "ssh"}

func (c reachCell) version() string {
	if c.six {
		return "6"
	}
	return "4"
}

// keys returns the keys of a cell for the tables of a path, the most specific one first.
func (c reachCell) keys() []string {
	return []string{
		c.prober + "/" + c.network + "/" + c.version(), c.prober + "/" + c.network, c.prober + "/" + c.version(), c.prober,
	}
}

func lookUp[V any](table map[string]V, c reachCell) (v V, ok bool) {
	for _, key := range c.keys() {
		if v, ok = table[key]; ok {
			return v, ok
		}
	}
	return v, false
}

// reachCells returns the cells of a path that are measured.
func (p reachPath) reachCells() (cells []reachCell) {
	for _, six := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			for _, name := range reachProbers {
				c := reachCell{name, network, six}
				if name == "ssh" && !canRunSSHD() {
					continue
				}
				if longChecks || slices.ContainsFunc(c.keys(), func(key string) bool { return slices.Contains(p.ci, key) }) {
					cells = append(cells, c)
				}
			}
		}
	}
	return cells
}

// isClosed reports whether nothing arrives from the internet.
func (p reachPath) isClosed(c reachCell) bool { return strings.Contains(p.closed, c.version()) }

// TestReach measures a forwarded port by each prober on each path. No prober reports that a
// port is reachable although it is not. It prints a table; with the variable in reachTableFile, it
// also appends the table to a file.
func TestReach(t *testing.T) {
	t.Parallel()
	table := &reachTable{cells: map[string]map[reachCell]string{}}
	t.Cleanup(func() { table.print(t) })
	for _, path := range reachPaths {
		if len(path.reachCells()) == 0 {
			continue
		}
		table.paths = append(table.paths, path.name)
		t.Run(path.name, func(t *testing.T) {
			t.Parallel()
			if path.ci != nil {
				lab.Scenario(t, "reach: "+path.name)
			}
			testReachPath(t, path, table)
		})
	}
}

func testReachPath(t *testing.T, path reachPath, table *reachTable) {
	t.Helper()
	l := newReachLab(t, path.uplink)
	l.open(t, path.socket)
	cells := path.reachCells()
	l.helpers = startHelpers(t, l.home, func(prober string) bool {
		return slices.ContainsFunc(cells, func(c reachCell) bool { return c.prober == prober })
	})
	l.useSSH()
	for _, c := range cells {
		if (c.prober == "path" || isHelper(c.prober)) && !path.fresh {
			l.program.call(reachCall{Op: "verify", Network: c.network, Target: l.targets[c.six], Probers: []string{l.helpers.prober(c)}, Within: 2 * maxWait}, nil)
		}
	}
	begin := time.Now()
	l.answers(t, "tcp", false) // a visit
	if path.setUp != nil {
		path.setUp(t, l)
	}
	for _, c := range cells {
		if in := l.answers(t, c.network, c.six); in == path.isClosed(c) {
			t.Fatalf("%s over IPv%s: bytes from the internet arrive: %v", c.network, c.version(), in)
		}
	}
	if c := (reachCell{"path", "tcp", false}); path.isClosed(c) && !path.fresh && path.socket == "" && slices.Contains(cells, c) {
		l.measureAfterVisit(t, begin)
	}
	for _, c := range cells {
		l.measure(t, path, c, table)
	}
}

// measureAfterVisit measures a path that is closed now, while the program still reports a visit
// of a few seconds ago. The visit does not make the port reachable.
func (l *reachLab) measureAfterVisit(t *testing.T, begin time.Time) {
	t.Helper()
	r := l.program.call(reachCall{
		Op: "verify", Network: "tcp", Target: l.targets[false], Probers: []string{"path:eth1"}, Within: maxWait, Visits: begin,
	}, nil)
	t.Logf("after a visit: %s, %s: %s", r.Verdict, r.Evidence, r.Reason)
	if provesInternet(r) || r.Verdict != reach.Unreachable.String() {
		t.Errorf("after a visit: FALSE REACHABLE: %+v", r)
	}
}

// measure measures one cell and checks it.
func (l *reachLab) measure(t *testing.T, path reachPath, c reachCell, table *reachTable) {
	t.Helper()
	replaced := path.socket == "none" || path.socket == "loopback" // by a socket of package reach
	_, isFalseNo := lookUp(path.falseNo, c)
	call := reachCall{Op: "verify", Network: c.network, Target: l.targets[c.six], Probers: []string{l.helpers.prober(c)}, Within: 2 * maxWait}
	method := l.helpers.method(c)
	switch c.prober {
	case "visit":
		if path.socket == "" {
			call.Visits = time.Now()
		}
		l.answers(t, c.network, !c.six) // a visit over the other version of IP proves nothing
		l.answers(t, c.network, c.six)
	case "phone":
		call.Within = maxWait
		if path.isClosed(c) || isFalseNo {
			call.Within = 3 * time.Second
		}
	}
	for _, link := range l.links {
		link.Reset()
	}
	r := l.program.call(call, func(text string) {
		address, urlPath := splitURL(t, text)
		var err error
		if path.socket == "service" {
			err = l.connect(t, address)
		} else {
			err = openURL(t, l.home.Wan, address, urlPath, 2*time.Second)
		}
		if opens := !path.isClosed(c) || replaced; (err == nil) != opens && !isFalseNo {
			t.Errorf("phone: %v", err)
		}
	})
	var packets []string
	for _, link := range l.links {
		packets = append(packets, fmt.Sprint(len(link.Packets())))
	}

	got, detail := noEvidence, r.Reason
	for _, e := range r.Evidence {
		if e.Method == method {
			got, detail = e.String(), e.Detail
		}
	}
	cell := fmt.Sprintf("%s, %.2f s, %s", got, r.Took.Seconds(), strings.Join(packets, "+"))
	table.add(path.name, c, cell)
	t.Logf("%s: %s: %s", strings.Join(c.keys()[:1], ""), cell, detail)

	if c.prober == "phone" && c.network == "tcp" && path.socket == "service" {
		if named := strings.Contains(detail, l.home.Wan.Addr().String()) || strings.Contains(detail, "2a0c:7777:2::2"); named == path.isClosed(c) {
			t.Errorf("%s: the visitor is named: %v: %s", c.keys()[0], named, detail)
		}
	}
	want, ok := lookUp(path.want, c)
	if !ok || !slices.Contains(want, got) {
		t.Errorf("%s: %s, want %q: %s", c.keys()[0], got, want, detail)
	}
	proves := r.Verdict == reach.Reachable.String() || r.Proven == reach.LevelInternet.String()
	if replaced {
		proves = r.Verdict == reach.Reachable.String()
	}
	if path.isClosed(c) && proves {
		t.Errorf("%s: FALSE REACHABLE: %+v", c.keys()[0], r)
	}
	if !path.isClosed(c) && r.Verdict == reach.Unreachable.String() && !isFalseNo {
		t.Errorf("%s: false unreachable: %+v", c.keys()[0], r)
	}
	if r.Verdict == reach.Reachable.String() != (got == fromOutside) && !replaced {
		t.Errorf("%s: %s, and the conclusion is %s: %s", c.keys()[0], got, r.Verdict, r.Reason)
	}
}

// connect connects from the internet and keeps the connection open for a second, as browsers do.
func (l *reachLab) connect(t *testing.T, address string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := l.home.Wan.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, conn)
	return nil
}

// reachTable collects the cells of all paths.
type reachTable struct {
	paths []string

	mu    sync.Mutex
	cells map[string]map[reachCell]string
}

func (r *reachTable) add(path string, c reachCell, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cells[path] == nil {
		r.cells[path] = map[reachCell]string{}
	}
	r.cells[path][c] = text
}

// String returns a table for each network and version of IP.
func (r *reachTable) String() string {
	var b strings.Builder
	b.WriteString("Each cell: verdict and level, duration, packets on the LAN + on the WAN + on the second uplink.\n")
	for _, six := range []bool{false, true} {
		for _, network := range []string{"tcp", "udp"} {
			fmt.Fprintf(&b, "\n| %s over IPv%s | %s |\n|---|", strings.ToUpper(network), reachCell{six: six}.version(), strings.Join(reachProbers, " | "))
			b.WriteString(strings.Repeat("---|", len(reachProbers)) + "\n")
			for _, path := range r.paths {
				if r.cells[path] == nil { // it was not selected
					continue
				}
				fmt.Fprintf(&b, "| %s |", path)
				for _, name := range reachProbers {
					fmt.Fprintf(&b, " %s |", r.cells[path][reachCell{name, network, six}])
				}
				b.WriteString("\n")
			}
		}
	}
	return b.String()
}

func (r *reachTable) print(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Logf("\n%s", r)
	path := os.Getenv(reachTableFile)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(r.String()); err != nil {
		t.Error(err)
	}
}
