package labtest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// TestEnable checks that bytes arrive after Enable and before Disable, and at no other
// time.
//
// It does not run in parallel: on a busy machine, the router can be late with its reply to NAT-PMP,
// and PCP is chosen.
func TestEnable(t *testing.T) {
	for name, networks := range map[string][]string{
		"tcp":  {"tcp"},
		"udp":  {"udp"},
		"both": {"tcp", "udp"},
	} {
		t.Run(name, func(t *testing.T) {
			lab.Scenario(t, "forward: enable and disable "+name)
			home := lab.Home(t, lab.Router{})
			var echoes []lab.Echo
			for _, network := range networks {
				echoes = append(echoes, home.Lan.Echo(t, network, ":8080"))
			}
			for _, echo := range echoes {
				home.DoesNotReach(t, echo, externalAddr(home, 8080))
			}

			f := newForwarder(t, home.Lan, config{})
			m := f.enable(option{Name: name, Port: 8080})
			if m.External != externalAddr(home, 8080) || m.Internal != echoes[0].Addr || m.Scope != "public" ||
				m.Gateway.Addr() != home.Gateway || m.Backend != "natpmp" || len(m.Grants) != len(networks) {
				t.Errorf("%+v", m.state)
			}
			wantRules(t, home, len(networks))
			for _, echo := range echoes {
				home.Reaches(t, echo, m.External)
			}

			f.disable()
			wantRules(t, home, 0)
			for _, echo := range echoes {
				home.DoesNotReach(t, echo, m.External)
			}
			f.close()
			f.exit()
		})
	}
}

// TestEnableWithoutOptions checks Enable without options: it chooses a free port.
func TestEnableWithoutOptions(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: enable a free port")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{Package: true})
	m := f.enable()
	if m.Internal.Port() == 0 || m.Internal.Addr() != home.Lan.Addr() {
		t.Fatalf("internal %v", m.Internal)
	}
	echo := home.Lan.Echo(t, "tcp", m.Internal.String()) // the port is free
	home.Reaches(t, echo, m.External)
	wantRules(t, home, 1)
	f.disable()
	wantRules(t, home, 0)
	home.DoesNotReach(t, echo, m.External)
}

func TestEnableExternal(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: enable another external port")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080), external(80), exact)
	if m.External != externalAddr(home, 80) {
		t.Errorf("external %v, want port 80", m.External)
	}
	home.Reaches(t, echo, m.External)
	home.DoesNotReach(t, echo, externalAddr(home, 8080))
	m.close()
	wantRules(t, home, 0)
}

// TestEnableMany checks many concurrent calls. The library sends one request at a time.
func TestEnableMany(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: enable many at once")
	home := lab.Home(t, lab.Router{})
	f := newForwarder(t, home.Lan, config{})
	const first, n = 8000, 40
	var ids []int
	for i := range uint16(n) {
		ids = append(ids, f.beginEnable(both(first+i)))
	}
	for _, id := range ids {
		m, err := f.toMapping(f.await(id))
		if err != nil {
			t.Fatal(err)
		}
		if m.External.Port() != m.Internal.Port() {
			t.Errorf("%v → %v", m.External, m.Internal)
		}
		home.Reaches(t, home.Lan.Echo(t, "tcp", m.Internal.String()), m.External)
		home.Reaches(t, home.Lan.Echo(t, "udp", m.Internal.String()), m.External)
	}
	wantRules(t, home, 2*n)
	if got := f.disableAll(); got != n {
		t.Errorf("%d disabled, want %d", got, n)
	}
	wantRules(t, home, 0)
}

// TestEnableLoss checks Enable and Disable if every second request and every third
// response is lost.
func TestEnableLoss(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: enable and disable over a link that loses packets")
	home := lab.Home(t, lab.Router{})
	home.Router.Rule(t, "input", `iifname "lan0" udp dport 5351 numgen inc mod 2 == 0 drop`)
	home.Router.Rule(t, "output", `oifname "lan0" udp sport 5351 numgen inc mod 3 == 0 drop`)
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(both(8080))
	home.Reaches(t, home.Lan.Echo(t, "tcp", ":8080"), m.External)
	home.Reaches(t, home.Lan.Echo(t, "udp", ":8080"), m.External)
	f.disable()
	wantRules(t, home, 0)
}

// TestBackground checks a program that starts before the host has a default route.
func TestBackground(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: in the background, before there is a route")
	home := lab.Home(t, lab.Router{})
	home.Lan.Exec(t, "ip", "route", "del", "default")
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	got := f.do(call{Op: "enable", Forwarder: f.n, Options: []option{tcp(8080), background}})
	if got.Took > tolerance || got.State.External.IsValid() {
		t.Errorf("after %v: %+v", got.Took, got.State)
	}
	m, _ := f.toMapping(got)
	waitUntil(t, maxWait, "no attempt fails", func() bool { return m.fetchState().Failure != nil })
	wantKinds(t, m.Failure, forward.ErrNoGateway)

	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	begin := time.Now()
	m.wait(maxWait)
	t.Logf("granted %v after the route appeared", time.Since(begin))
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("granted %v after the route appeared", took)
	}
	f.wantEvent(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	f.disable()
	wantRules(t, home, 0)
}

// TestBackgroundRouter checks a program that starts before the router.
func TestBackgroundRouter(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: in the background, before the router answers")
	home := lab.Home(t, lab.Router{})
	home.Daemon.Kill(t)
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "udp", ":8080")
	m := f.enable(udp(8080), background)
	waitUntil(t, maxWait, "no attempt fails", func() bool { return m.fetchState().Failure != nil })
	wantKinds(t, m.Failure, forward.ErrNoGateway, backends.ErrNoReply)
	home.DoesNotReach(t, echo, externalAddr(home, 8080))
	home.Daemon.Start(t)
	begin := time.Now()
	m.wait(maxWait)
	t.Logf("granted %v after the router was ready", time.Since(begin))
	f.wantEvent(forward.EventMapped)
	home.Reaches(t, echo, m.External)
	m.close()
	wantRules(t, home, 0)
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: a taken port, another is granted")
	home := lab.Home(t, lab.Router{})
	neighbourEcho := occupyPort(t, home, "tcp", 8080)
	hostEcho := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	if m.External.Port() == 8080 {
		t.Errorf("external %v, which is taken", m.External)
	}
	home.Reaches(t, hostEcho, m.External)
	home.Reaches(t, neighbourEcho, externalAddr(home, 8080))
	wantRules(t, home, 2)
	f.disable()
	home.DoesNotReach(t, hostEcho, m.External)
	home.Reaches(t, neighbourEcho, externalAddr(home, 8080))
	wantRules(t, home, 1)
}

func TestPortTakenExact(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: a taken port, exactly that one wanted")
	home := lab.Home(t, lab.Router{})
	neighbourEcho := occupyPort(t, home, "tcp", 8080)
	f := newForwarder(t, home.Lan, config{})
	f.wantEnableError([]error{backends.ErrConflict}, tcp(8080), exact)
	wantRules(t, home, 1)
	f.wantEnableError([]error{backends.ErrConflict}, both(8080), exact)
	wantRules(t, home, 1)
	home.Reaches(t, neighbourEcho, externalAddr(home, 8080))

	// A port that is free is granted.
	hostEcho := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080), external(8081), exact)
	home.Reaches(t, hostEcho, m.External)
	if m.External != externalAddr(home, 8081) {
		t.Errorf("external %v, want exactly port 8081", m.External)
	}
}

func TestPortTakenBoth(t *testing.T) {
	t.Parallel()
	for _, half := range []string{"tcp", "udp"} {
		t.Run(half, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the "+half+" half of a unit is taken")
			home := lab.Home(t, lab.Router{})
			neighbourEcho := occupyPort(t, home, half, 8080)
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(both(8080))
			if m.External.Port() == 8080 || len(m.Grants) != 2 || m.Grants[0].External != m.Grants[1].External {
				t.Errorf("granted %v, want one other port on both protocols", m.Grants)
			}
			home.Reaches(t, home.Lan.Echo(t, "tcp", ":8080"), m.External)
			home.Reaches(t, home.Lan.Echo(t, "udp", ":8080"), m.External)
			wantRules(t, home, 3)
			f.disable()
			wantRules(t, home, 1)
			home.Reaches(t, neighbourEcho, externalAddr(home, 8080))
		})
	}
}

func TestSamePort(t *testing.T) {
	t.Parallel()
	for _, o := range []option{tcp(8080), both(8080)} {
		t.Run(o.Name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: a taken port, one number inside and outside, "+o.Name)
			home := lab.Home(t, lab.Router{})
			occupyPort(t, home, "tcp", 8080)
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(o, samePort)
			if m.External.Port() == 8080 || m.External.Port() != m.Internal.Port() {
				t.Fatalf("%v → %v, want one other number", m.External, m.Internal)
			}
			home.Reaches(t, home.Lan.Echo(t, "tcp", m.Internal.String()), m.External)
			wantRules(t, home, 1+len(m.Grants)) // the ports that Enable tried before are deleted
			f.disable()
			wantRules(t, home, 1)
		})
	}
}

// rangeProgram enables ports 8000 to 8002 and closes them when it receives a message.
var rangeProgram = lab.Func("range of ports", func(p *lab.Proc) {
	var protocol string
	p.Args(&protocol)
	f, err := forward.New(&forward.Config{Protocols: []string{protocol}})
	if err != nil {
		p.Fatal(err)
	}
	m, err := f.Enable(context.Background(), forward.Ports(8000, 8002))
	if err != nil {
		p.Fatal(err)
	}
	var externals []netip.AddrPort
	for _, g := range m.Grants() {
		externals = append(externals, g.External)
	}
	p.Send(externals)
	p.Receive(new(string))
	if err := f.Close(); err != nil {
		p.Fatal(err)
	}
})

// TestRange checks that the real router forwards all ports of a range, next to each
// other, even if one of them is taken.
func TestRange(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: a range of ports as one unit, "+protocol)
			home := lab.Home(t, lab.Router{})
			occupyPort(t, home, "tcp", 8001)
			var echoes []lab.Echo
			for port := 8000; port <= 8002; port++ {
				echoes = append(echoes, home.Lan.Echo(t, "tcp", fmt.Sprint(":", port)))
			}
			program := home.Lan.Start(t, rangeProgram, protocol)
			var externals []netip.AddrPort
			program.Expect(&externals)
			if len(externals) != len(echoes) {
				t.Fatalf("granted %v", externals)
			}
			for i, external := range externals {
				if external.Port() != externals[0].Port()+uint16(i) { //nolint:gosec // in range
					t.Errorf("granted %v, which is not a range", externals)
				}
				home.Reaches(t, echoes[i], external)
			}
			wantRules(t, home, 1+len(externals)) // the ports that Enable tried before are deleted
			program.Send("end")
			program.Wait()
			wantRules(t, home, 1)
		})
	}
}

// visit is the result of Listener.Visited.
type visit struct {
	At   time.Time
	From netip.AddrPort
}

// visitedProgram opens a listener and sends the last visit after each connection.
var visitedProgram = lab.Func("visited listener", func(p *lab.Proc) {
	p.Args(new(string))
	f, err := forward.New(nil)
	if err != nil {
		p.Fatal(err)
	}
	ctx := context.Background()
	ln, err := f.Listen(ctx, "tcp4", ":8080")
	if err != nil {
		p.Fatal(err)
	}
	if err := ln.Wait(ctx); err != nil {
		p.Fatal(err)
	}
	accepted := make(chan struct{}, 8)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
			accepted <- struct{}{}
		}
	}()
	p.Send(ln.External().AddrPort)
	for range 2 {
		<-accepted
		at, peer := ln.Visited()
		p.Send(visit{at, peer})
	}
	p.Receive(new(string))
	if err := f.Close(); err != nil {
		p.Fatal(err)
	}
})

// TestVisited checks that only a connection from the internet is a visit.
func TestVisited(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: a listener knows its last visitor from the internet")
	home := lab.Home(t, lab.Router{})
	program := home.Lan.Start(t, visitedProgram, "")
	var external netip.AddrPort
	program.Expect(&external)
	dial := func(h *lab.Host, at netip.AddrPort) (visit, netip.AddrPort) {
		t.Helper()
		conn, err := h.Dial(t.Context(), "tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var v visit
		program.Expect(&v)
		return v, conn.LocalAddr().(*net.TCPAddr).AddrPort()
	}
	if v, _ := dial(home.Lan, netip.AddrPortFrom(home.Lan.Addr(), 8080)); !v.At.IsZero() || v.From.IsValid() {
		t.Errorf("a connection from this host counts as a visit: %v", v)
	}
	if v, from := dial(home.Wan, external); v.At.IsZero() || v.From != from {
		t.Errorf("Visited: %v, want one from %v", v, from)
	}
	program.Send("end")
	program.Wait()
	if scope := backends.ScopeOf(home.Wan.Addr()); scope != backends.ScopePublic {
		t.Errorf("the visitor's address is %v: the test proves nothing", scope)
	}
}
