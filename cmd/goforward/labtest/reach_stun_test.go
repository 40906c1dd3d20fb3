package labtest

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// stunLab is a home with a forwarded UDP port, and a real STUN server with two addresses on the wan
// host.
type stunLab struct {
	home          *lab.HomeNet
	program       *prober
	target        reachTarget
	first, second netip.Addr   // of the server
	wan           *lab.Capture // of the router's external interface
}

func newStunLab(t *testing.T, six bool) *stunLab {
	t.Helper()
	l := &stunLab{home: lab.Home(t, lab.Router{IPv6: true})}
	options := []option{udp(reachPort)}
	first, second, first6, second6 := wanAddrs(t, l.home)
	if l.first, l.second = first, second; six {
		options = append(options, overIPv6)
		l.first, l.second = first6, second6
	}
	m := newForwarder(t, l.home.Lan, config{CheckEvery: -1}).enable(options...)
	l.target = reachTarget{External: m.External, Internal: m.Internal, Gateway: m.Gateway.Addr(), Interface: "eth0"}
	if m.External.Port() != reachPort {
		t.Fatalf("the router granted port %v", m.External)
	}
	l.wan = l.home.Router.Capture(t, "wan0")
	l.program = startProber(t, l.home.Lan)
	return l
}

// listen opens the socket of the program.
func (l *stunLab) listen() {
	network := "udp4"
	if l.target.Internal.Addr().Is6() {
		network = "udp6"
	}
	l.program.call(reachCall{Op: "open", Network: network, Address: l.target.Internal.String()}, nil)
}

// verify measures the port by the server, and checks the evidence and the conclusion.
func (l *stunLab) verify(t *testing.T, evidence, detail string) {
	t.Helper()
	method := "stun:" + l.first.String()
	r := l.program.call(reachCall{Op: "verify", Network: "udp", Target: l.target, Probers: []string{method}, Within: maxWait}, nil)
	for _, e := range r.Evidence {
		if e.Method != method {
			continue
		}
		t.Logf("%v, %.2f s: %s", e, r.Took.Seconds(), e.Detail)
		if e.String() != evidence || !strings.Contains(e.Detail, detail) {
			t.Errorf("%v: %s, want %s: …%s…", e, e.Detail, evidence, detail)
		}
		if isReachable := evidence == fromOutside; isReachable != (r.Verdict == reach.Reachable.String()) {
			t.Errorf("%v, and the conclusion is %s: %s", e, r.Verdict, r.Reason)
		}
		return
	}
	t.Fatalf("no evidence of %s: %+v", method, r)
}

// answers returns the sources of the answers of the server to the external port, as they reached the
// router, and fails the test if anything left the external port.
func (l *stunLab) answers(t *testing.T) map[netip.AddrPort]int {
	t.Helper()
	sources := map[netip.AddrPort]int{}
	for _, p := range l.wan.Reset() {
		switch {
		case p.Protocol != lab.ProtocolUDP:
		case p.From == l.target.External:
			t.Errorf("a datagram left %v for %v: % x", p.From, p.To, p.Payload)
		case p.To == l.target.External:
			sources[p.From]++
		}
	}
	return sources
}

// hello sends a datagram from the first address of the server to the external port. It returns an error
// if no answer arrives.
func (l *stunLab) hello(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	conn, err := l.home.Wan.DialFrom(ctx, "udp", l.first, l.target.External.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 100))
	return err
}

// TestReachSTUN measures a UDP port by coturn. It is reachable; then the router forwards no longer,
// although it still lists the mapping.
func TestReachSTUN(t *testing.T) {
	t.Parallel()
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "reach by STUN: reachable, then listed and not forwarded, over "+name)
			l := newStunLab(t, six)
			startCoturn(t, l.home.Wan, l.first, l.second)
			l.listen()
			both, one := netip.AddrPortFrom(l.second, 3479), netip.AddrPortFrom(l.second, 3478)
			l.verify(t, fromOutside, both.String())
			if answers := l.answers(t); answers[both] == 0 || len(answers) != 1 {
				t.Errorf("answers came from %v, want %v", answers, both)
			}
			l.home.Daemon.Forget(t)
			l.verify(t, unreachable, "nothing arrived although stun:"+l.first.String()+" reached")
			if answers := l.answers(t); answers[both] == 0 || answers[one] == 0 || len(answers) != 2 {
				t.Errorf("answers came from %v, want %v and %v", answers, both, one)
			}
			l.verify(t, unknown, "it can measure "+l.target.External.String()+" again in")
			if answers := l.answers(t); len(answers) != 0 {
				t.Errorf("answers came from %v", answers)
			}
		})
	}
}

// TestReachSTUNUnknown checks servers and routers with which the measurement proves nothing.
func TestReachSTUNUnknown(t *testing.T) {
	t.Parallel()
	server := func(t *testing.T, l *stunLab) { t.Helper(); startCoturn(t, l.home.Wan, l.first, l.second) }
	admitted := func(t *testing.T, l *stunLab, admitted string) {
		t.Helper()
		server(t, l)
		l.home.Router.Nft(t, `table inet filter_by_address {
	set contacted { type ipv4_addr; flags dynamic; size 65535; }
	set contacted_by { type ipv4_addr . inet_service . ipv4_addr; flags dynamic; size 65535; }
	chain forward {
		type filter hook forward priority -20;
		iifname "lan0" oifname "wan0" add @contacted { ip daddr }
		iifname "lan0" oifname "wan0" udp sport 1-65535 add @contacted_by { ip saddr . udp sport . ip daddr }
		iifname "wan0" oifname "lan0" ct state new meta l4proto udp `+admitted+` drop
	}
}
`)
	}
	for _, tt := range []struct {
		name    string
		setUp   func(*testing.T, *stunLab)
		foreign bool   // another process has the port
		detail  string // of the evidence
		answers int    // sources of answers
		// admits says whether the first address of the server reaches the port afterwards.
		admits bool
	}{
		{
			name: "never reached", answers: 1, detail: "it has not reached 45.45.45.1:8080 before",
			setUp: func(t *testing.T, l *stunLab) { t.Helper(); server(t, l); l.home.Daemon.Forget(t) },
		},
		{
			name: "one address", detail: "it names 45.45.45.2:3479 as its second address, which proves nothing", admits: true,
			setUp: func(t *testing.T, l *stunLab) {
				t.Helper()
				startCoturn(t, l.home.Wan, l.first, netip.MustParseAddr("2a0c:7777:2::2"))
			},
		},
		{name: "refuses", setUp: func(*testing.T, *stunLab) {}, detail: "refuses the port", admits: true},
		{
			name: "away", detail: "it does not answer", admits: true,
			setUp: func(t *testing.T, l *stunLab) { t.Helper(); l.home.Wan.Rule(t, "input", "udp dport 3478 drop") },
		},
		{name: "another program has the port", setUp: server, foreign: true, detail: "another program has the port", admits: true},
		{
			name: "router filters by address", answers: 1, detail: "nothing arrived",
			setUp: func(t *testing.T, l *stunLab) {
				t.Helper()
				admitted(t, l, "ip daddr . udp dport . ip saddr != @contacted_by")
			},
		},
		{ // the address that was contacted may send to all ports
			name: "router filters by address for all ports", answers: 1, detail: "nothing arrived", admits: true,
			setUp: func(t *testing.T, l *stunLab) { t.Helper(); admitted(t, l, "ip saddr != @contacted") },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "reach by STUN: "+tt.name)
			l := newStunLab(t, false)
			tt.setUp(t, l)
			if tt.foreign {
				l.home.Lan.Echo(t, "udp", fmt.Sprintf(":%d", reachPort))
			} else {
				l.listen()
			}
			l.wan.Reset()
			l.verify(t, unknown, tt.detail)
			if tt.foreign {
				if packets := l.wan.Reset(); len(packets) > 0 {
					t.Errorf("packets left: %v", packets)
				}
			} else if answers := l.answers(t); len(answers) != tt.answers {
				t.Errorf("answers came from %v, want %d sources", answers, tt.answers)
			}
			if err := l.hello(t); (err == nil) != tt.admits {
				t.Errorf("the first address of the server: %v", err)
			}
		})
	}
}
