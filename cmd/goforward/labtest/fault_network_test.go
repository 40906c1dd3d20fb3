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

// held is a mapping that is in use.
type held struct {
	*mapping
	echo lab.Echo
	name string
}

// holdAll holds a mapping by each protocol, of both TCP and UDP, on one host.
func holdAll(t *testing.T, home *lab.HomeNet, lease time.Duration) (all []*held) {
	t.Helper()
	a := start(t, home.Lan)
	for i, backend := range []string{"natpmp", "pcp", "upnp"} {
		f := a.forwarder(config{Order: []string{backend}, Lifetime: lease})
		for j, network := range []string{"tcp", "udp"} {
			h := &held{name: network + " by " + backend}
			h.echo = home.Lan.Echo(t, network, fmt.Sprintf(":%d", firstPort+10*i+j))
			h.mapping = f.enable(option{Name: network, Port: h.echo.Addr.Port()})
			home.Reaches(t, h.echo, h.External)
			all = append(all, h)
		}
	}
	return all
}

// allCome waits until bytes arrive at all of them again.
func allCome(t *testing.T, home *lab.HomeNet, all []*held, within time.Duration) {
	t.Helper()
	begin := time.Now()
	for _, h := range all {
		until(t, within, h.name+": no bytes arrive", func() bool {
			s := h.now()
			return s.External.IsValid() && answered(t, home.Wan, h.echo, s.External)
		})
		t.Logf("%s: bytes arrived within %v", h.name, time.Since(begin).Round(time.Millisecond))
	}
}

// allClose closes them, and wants nothing to be left.
func allClose(t *testing.T, home *lab.HomeNet, all []*held) {
	t.Helper()
	for _, h := range all {
		h.close()
		if rules := rulesTo(t, home, home.Lan, h.echo.Addr.Port()); len(rules) > 0 {
			t.Errorf("%s: closed, but still there: %q", h.name, rules)
		}
	}
}

// The router forgets the connections that it tracks, while one goes on: new ones
// still arrive, and no mapping is taken for lost.
func TestFaultConntrack(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "fault: tracked connections are forgotten")
	home := lab.Home(t, lab.Router{})
	all := holdAll(t, home, time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	conn, err := home.Wan.Dial(ctx, "tcp", all[0].External.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	lines := bufio.NewReader(conn)
	if _, err := lines.ReadString('\n'); err != nil { // the greeting
		t.Fatal(err)
	}
	speak(t, conn, lines, "before\n")
	before := entries(t, home)
	home.Router.Exec(t, "conntrack", "-F")
	for _, h := range all {
		home.Reaches(t, h.echo, h.External)
		if s := h.now(); s.Failure != nil || s.External != h.External {
			t.Errorf("%s: %+v", h.name, s)
		}
	}
	speak(t, conn, lines, "after\n") // the router takes it up in the middle
	if after := entries(t, home); len(after) != len(before) {
		t.Errorf("before: %q, after: %q", before, after)
	}
	for _, e := range all[0].f.events {
		if e.Previous.IsValid() {
			t.Errorf("event %v (%s)", e.Kind, e.Reason)
		}
	}
	allClose(t, home, all)
	wantRules(t, home, 0)
}

// speak wants a line to come back.
func speak(t *testing.T, w io.Writer, r *bufio.Reader, line string) {
	t.Helper()
	if _, err := io.WriteString(w, line); err != nil {
		t.Fatal(err)
	}
	if got, err := r.ReadString('\n'); got != line {
		t.Fatalf("%q came back, want %q: %v", got, line, err)
	}
}

// An interface goes down for longer than mappings live, and comes up again: this
// host's, the router's inside, the router's outside.
func TestFaultInterface(t *testing.T) {
	t.Parallel()
	const lease = 8 * time.Second
	sides := []*side{
		{name: "of this host", dev: "eth0"},
		{name: "of the router, inside", dev: "lan0"},
		{name: "of the router, outside", dev: "wan0"},
	}
	for _, at := range sides {
		lab.Scenario(t, "fault: an interface goes down and comes up, "+at.name)
		at.home = lab.Home(t, lab.Router{})
		at.all = holdAll(t, at.home, lease)
		at.host().Exec(t, "ip", "link", "set", at.dev, "down")
	}
	begin := time.Now()
	until(t, patience, "the time does not pass", func() bool { return time.Since(begin) > lease+lease/4 })
	for _, at := range sides {
		at.host().Exec(t, "ip", "link", "set", at.dev, "up")
		if at.host() == at.home.Lan { // it goes with the interface
			at.home.Lan.Exec(t, "ip", "route", "add", "default", "via", at.home.Gateway.String())
		}
	}
	for _, at := range sides {
		t.Log("the interface ", at.name)
		allCome(t, at.home, at.all, patience)
		allClose(t, at.home, at.all)
	}
	for _, at := range sides {
		if !eventually(lease+patience, func() bool { return len(ours(entries(t, at.home))) == 0 }) {
			t.Errorf("%s: entries outlive their lifetime: %q", at.name, entries(t, at.home))
		}
	}
}

// side is an interface of a home, and what is held in that home.
type side struct {
	name, dev string
	home      *lab.HomeNet
	all       []*held
}

func (s *side) host() *lab.Host {
	if s.dev == "eth0" {
		return s.home.Lan
	}
	return s.home.Router
}

// ours are the entries of ports that were asked for, and not those by which the
// library learns how a router treats the secrets of PCP.
func ours(rules []string) (out []string) {
	for _, rule := range rules {
		if port := portTo(rule); port >= firstPort && port <= lastPort {
			out = append(out, rule)
		}
	}
	return out
}
