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

// rangeProgram holds ports 8000 to 8002 until it is told to end.
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
	var at []netip.AddrPort
	for _, g := range m.Grants() {
		at = append(at, g.External)
	}
	p.Send(at)
	p.Receive(new(string))
	if err := f.Close(); err != nil {
		p.Fatal(err)
	}
})

// A range is one unit on the real router too: all of its ports are forwarded, next to each
// other, also if one of them is taken.
func TestRange(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"natpmp", "pcp", "upnp"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: a range of ports as one unit, "+protocol)
			home := lab.Home(t, lab.Router{})
			neighbour(t, home, "tcp", 8001)
			var echoes []lab.Echo
			for port := 8000; port <= 8002; port++ {
				echoes = append(echoes, home.Lan.Echo(t, "tcp", fmt.Sprint(":", port)))
			}
			program := home.Lan.Start(t, rangeProgram, protocol)
			var at []netip.AddrPort
			program.Expect(&at)
			if len(at) != len(echoes) {
				t.Fatalf("granted %v", at)
			}
			for i, external := range at {
				if external.Port() != at[0].Port()+uint16(i) { //nolint:gosec // in range
					t.Errorf("granted %v, which is no range", at)
				}
				home.Reaches(t, echoes[i], external)
			}
			wantRules(t, home, 1+len(at)) // what was tried before is deleted
			program.Send("end")
			program.Wait()
			wantRules(t, home, 1)
		})
	}
}

// visit is what a program knows of its visitors.
type visit struct {
	At   time.Time
	From netip.AddrPort
}

// visitedProgram listens, and says when the last visitor came.
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
		at, from := ln.Visited()
		p.Send(visit{at, from})
	}
	p.Receive(new(string))
	if err := f.Close(); err != nil {
		p.Fatal(err)
	}
})

// Only a connection from the internet is a visit.
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
		t.Errorf("a connection of this host counts: %v", v)
	}
	if v, from := dial(home.Wan, external); v.At.IsZero() || v.From != from {
		t.Errorf("Visited: %v, want one from %v", v, from)
	}
	program.Send("end")
	program.Wait()
	if scope := backends.ScopeOf(home.Wan.Addr()); scope != backends.ScopePublic {
		t.Errorf("the visitor's address is %v: this proves nothing", scope)
	}
}
