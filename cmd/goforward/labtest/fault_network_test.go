package labtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// heldMapping is a mapping with a server behind it.
type heldMapping struct {
	*mapping
	echo lab.Echo
	name string
}

// mapByAllProtocols creates mappings on one host by each protocol, one for TCP and one
// for UDP.
func mapByAllProtocols(t *testing.T, home *lab.HomeNet, lease time.Duration) (all []*heldMapping) {
	t.Helper()
	a := start(t, home.Lan)
	for i, backend := range []string{"natpmp", "pcp", "upnp"} {
		f := a.forwarder(config{Protocols: []string{backend}, Lifetime: lease})
		for j, network := range []string{"tcp", "udp"} {
			h := &heldMapping{name: network + " by " + backend}
			h.echo = home.Lan.Echo(t, network, fmt.Sprintf(":%d", firstPort+10*i+j))
			h.mapping = f.enable(option{Name: network, Port: h.echo.Addr.Port()})
			home.Reaches(t, h.echo, h.External)
			all = append(all, h)
		}
	}
	return all
}

// waitAllReachable waits until bytes arrive through all mappings again.
func waitAllReachable(t *testing.T, home *lab.HomeNet, all []*heldMapping, within time.Duration) {
	t.Helper()
	begin := time.Now()
	for _, h := range all {
		waitUntil(t, within, h.name+": no bytes arrive", func() bool {
			s := h.fetchState()
			return s.External.IsValid() && isReachable(t, home.Wan, h.echo, s.External)
		})
		t.Logf("%s: bytes arrived within %v", h.name, time.Since(begin).Round(time.Millisecond))
	}
}

// closeAllMappings closes the mappings and checks that the router deletes them.
func closeAllMappings(t *testing.T, home *lab.HomeNet, all []*heldMapping) {
	t.Helper()
	for _, h := range all {
		h.close()
		if rules := rulesForHost(t, home, home.Lan, h.echo.Addr.Port()); len(rules) > 0 {
			t.Errorf("%s: closed, but the router still has %q", h.name, rules)
		}
	}
}

// TestFaultConntrack checks a router that loses its tracked connections while one
// connection is in use. New connections still arrive, and no mapping is regarded as lost.
func TestFaultConntrack(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "fault: tracked connections are forgotten")
	home := lab.Home(t, lab.Router{})
	all := mapByAllProtocols(t, home, time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 2*maxWait)
	defer cancel()
	conn, err := home.Wan.Dial(ctx, "tcp", all[0].External.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * maxWait))
	lines := bufio.NewReader(conn)
	if _, err := lines.ReadString('\n'); err != nil { // the token and the peer
		t.Fatal(err)
	}
	wantEchoedLine(t, conn, lines, "before\n")
	before := listRules(t, home)
	home.Router.Exec(t, "conntrack", "-F")
	for _, h := range all {
		home.Reaches(t, h.echo, h.External)
		if s := h.fetchState(); s.Failure != nil || s.External != h.External {
			t.Errorf("%s: %+v", h.name, s)
		}
	}
	wantEchoedLine(t, conn, lines, "after\n") // the router tracks the connection again, from the middle
	if after := listRules(t, home); len(after) != len(before) {
		t.Errorf("before: %q, after: %q", before, after)
	}
	for _, e := range all[0].f.events {
		if e.Previous.IsValid() {
			t.Errorf("event %v (%s)", e.Kind, e.Reason)
		}
	}
	closeAllMappings(t, home, all)
	wantRules(t, home, 0)
}

// wantEchoedLine sends a line and checks that the server returns it.
func wantEchoedLine(t *testing.T, w io.Writer, r *bufio.Reader, line string) {
	t.Helper()
	if _, err := io.WriteString(w, line); err != nil {
		t.Fatal(err)
	}
	if got, err := r.ReadString('\n'); got != line {
		t.Fatalf("the server returned %q, want %q: %v", got, line, err)
	}
}

// TestFaultInterface checks an interface that goes down for longer than the lifetime of
// the mappings, and comes up again. It does this for the interface of this host, and for
// both interfaces of the router.
func TestFaultInterface(t *testing.T) {
	t.Parallel()
	const lease = 8 * time.Second
	interfaces := []*faultInterface{
		{name: "of this host", dev: "eth0"},
		{name: "of the router, inside", dev: "lan0"},
		{name: "of the router, outside", dev: "wan0"},
	}
	for _, iface := range interfaces {
		lab.Scenario(t, "fault: an interface goes down and comes up, "+iface.name)
		iface.home = lab.Home(t, lab.Router{})
		iface.all = mapByAllProtocols(t, iface.home, lease)
		iface.host().Exec(t, "ip", "link", "set", iface.dev, "down")
	}
	begin := time.Now()
	waitUntil(t, maxWait, "the wait takes too long", func() bool { return time.Since(begin) > lease+lease/4 })
	for _, iface := range interfaces {
		iface.host().Exec(t, "ip", "link", "set", iface.dev, "up")
		if iface.host() == iface.home.Lan { // the kernel deletes the default route with the interface
			iface.home.Lan.Exec(t, "ip", "route", "add", "default", "via", iface.home.Gateway.String())
		}
	}
	for _, iface := range interfaces {
		t.Log("interface ", iface.name)
		waitAllReachable(t, iface.home, iface.all, maxWait)
		closeAllMappings(t, iface.home, iface.all)
	}
	for _, iface := range interfaces {
		if !eventually(lease+maxWait, func() bool { return len(requestedRules(listRules(t, iface.home))) == 0 }) {
			t.Errorf("%s: entries outlive their lifetime: %q", iface.name, listRules(t, iface.home))
		}
	}
}

// faultInterface is an interface of a home, and the mappings in that home.
type faultInterface struct {
	name, dev string
	home      *lab.HomeNet
	all       []*heldMapping
}

func (s *faultInterface) host() *lab.Host {
	if s.dev == "eth0" {
		return s.home.Lan
	}
	return s.home.Router
}

// requestedRules returns the entries of the ports that the tests request. It omits the
// entries by which the library determines how a router handles PCP nonces.
func requestedRules(rules []string) (out []string) {
	for _, rule := range rules {
		if port := internalPort(rule); port >= firstPort && port <= lastPort {
			out = append(out, rule)
		}
	}
	return out
}
