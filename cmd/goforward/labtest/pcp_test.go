package labtest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/internal/lab"
)

// pcpOnly is a router that supports only PCP.
var pcpOnly = lab.Router{NoNATPMP: true, NoUPnP: true}

// wantPCP checks that the mapping was granted by PCP.
func wantPCP(t *testing.T, m *mapping) {
	t.Helper()
	if m.Backend != "pcp" {
		t.Errorf("granted by %q, want pcp", m.Backend)
	}
}

func TestPCPEnable(t *testing.T) {
	t.Parallel()
	for name, networks := range map[string][]string{
		"tcp":  {"tcp"},
		"udp":  {"udp"},
		"both": {"tcp", "udp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "pcp: enable and disable "+name)
			home := lab.Home(t, pcpOnly)
			var echoes []lab.Echo
			for _, network := range networks {
				echo := home.Lan.Echo(t, network, ":8080")
				home.DoesNotReach(t, echo, externalAddr(home, 8080))
				echoes = append(echoes, echo)
			}
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(option{Name: name, Port: 8080})
			wantPCP(t, m)
			if m.External != externalAddr(home, 8080) || m.Internal != echoes[0].Addr || m.Scope != "public" ||
				m.Gateway.Addr() != home.Gateway || len(m.Grants) != len(networks) {
				t.Errorf("%+v", m.state)
			}
			if addr := f.externalIP(); addr != home.External {
				t.Errorf("external address %v, want %v", addr, home.External)
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

func TestPCPTaken(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "pcp: a taken port, another is granted")
	home, neighbourEcho := homeWithTakenPort(t)
	hostEcho := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	wantPCP(t, m)
	if m.External.Port() == 8080 {
		t.Errorf("external %v, which is taken", m.External)
	}
	home.Reaches(t, hostEcho, m.External)
	home.Reaches(t, neighbourEcho, externalAddr(home, 8080))
	f.disable()
	home.DoesNotReach(t, hostEcho, m.External)
	home.Reaches(t, neighbourEcho, externalAddr(home, 8080))
	wantRules(t, home, 1)
}

// homeWithTakenPort returns a home in which a neighbour has mapped port 8080, and the
// host Lan can use only PCP.
func homeWithTakenPort(t *testing.T) (*lab.HomeNet, lab.Echo) {
	t.Helper()
	home := lab.Home(t, lab.Router{NoUPnP: true})
	home.Router.Rule(t, "input", `ip saddr 192.168.77.2 udp dport 5351 @th,64,8 0 drop`)
	return home, occupyPort(t, home, "tcp", 8080)
}

// TestPCPTakenExact checks Exact with a taken port. This router responds to PREFER_FAILURE
// with success and another port, and the client must delete that mapping.
func TestPCPTakenExact(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "pcp: a taken port, exactly that one wanted")
	home, neighbourEcho := homeWithTakenPort(t)
	f := newForwarder(t, home.Lan, config{})
	f.wantEnableError([]error{backends.ErrConflict}, tcp(8080), exact)
	wantRules(t, home, 1)
	f.wantEnableError([]error{backends.ErrConflict}, both(8080), exact)
	wantRules(t, home, 1)
	home.Reaches(t, neighbourEcho, externalAddr(home, 8080))

	hostEcho := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080), external(8081), exact)
	wantPCP(t, m)
	if m.External != externalAddr(home, 8081) {
		t.Errorf("external %v, want exactly port 8081", m.External)
	}
	home.Reaches(t, hostEcho, m.External)
	f.close()
	wantRules(t, home, 1)
}

func TestPCPSamePort(t *testing.T) {
	t.Parallel()
	for _, o := range []option{tcp(8080), both(8080)} {
		t.Run(o.Name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "pcp: a taken port, one number inside and outside, "+o.Name)
			home, _ := homeWithTakenPort(t)
			f := newForwarder(t, home.Lan, config{})
			m := f.enable(o, samePort)
			wantPCP(t, m)
			if m.External.Port() == 8080 || m.External.Port() != m.Internal.Port() {
				t.Fatalf("%v → %v, want one other number", m.External, m.Internal)
			}
			for _, g := range m.Grants {
				home.Reaches(t, home.Lan.Echo(t, g.Protocol.String(), g.Internal.String()), g.External)
			}
			wantRules(t, home, 1+len(m.Grants)) // the ports that Enable tried before are deleted
			f.disable()
			wantRules(t, home, 1)
		})
	}
}

func TestPCPRenew(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "pcp: renewed for several lifetimes")
	testRenewal(t, pcpOnly, "pcp")
}

func TestPCPClose(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "pcp: ended by Close")
	home := lab.Home(t, pcpOnly)
	f := newForwarder(t, home.Lan, config{})
	echo := home.Lan.Echo(t, "tcp", ":8081")
	wantPCP(t, f.enable(both(8080)))
	m := f.enable(tcp(8081))
	home.Reaches(t, echo, m.External)
	wantRules(t, home, 3)
	f.close()
	wantRules(t, home, 0)
	home.DoesNotReach(t, echo, m.External)
}

// TestPCPFrom documents a weakness of this router: it accepts a FILTER option but does
// not enforce it, and no response shows this. So a caller cannot rely on From. The test
// fails if a future version of the router enforces filters.
func TestPCPFrom(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "pcp: from one peer only, which this router does not enforce")
	home := lab.Home(t, lab.Router{}) // NAT-PMP would be preferred, but has no filters
	second := joinWan(t, home)
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080), from(addrPort(home.Wan, 0)))
	wantPCP(t, m)
	if m.Grants[0].Remote.Addr() != home.Wan.Addr() {
		t.Errorf("the mapping has the peer %v, want %v", m.Grants[0].Remote, home.Wan.Addr())
	}
	home.Reaches(t, echo, m.External)
	peer, err := second.Reach(echo, m.External)
	if err != nil || peer.Addr() != second.Addr() {
		t.Errorf("the second host outside: peer %v, error %v, want a connection: this router enforces filters", peer, err)
	}
	f.disable()
	home.DoesNotReach(t, echo, m.External)
	wantRules(t, home, 0)
}

// deniedPort is a port that the daemon refuses. If Exact is not set, the daemon grants
// the next port that it allows.
const deniedPort = 80

func TestLowPorts(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]lab.Router{
		"natpmp": {DenyLowPorts: true, NoPCP: true, NoUPnP: true},
		"pcp":    {DenyLowPorts: true, NoNATPMP: true, NoUPnP: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, name+": ports below 1024 denied")
			home := lab.Home(t, router)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			f := newForwarder(t, home.Lan, config{})
			got := f.try(call{Op: "enable", Options: []option{tcp(8080), external(deniedPort), exact}})
			if got.Failure == nil {
				t.Fatalf("a denied port was granted: %+v", got.State)
			}
			t.Logf("after %v: %v", got.Took, got.Failure)
			if !got.Failure.Is(backends.ErrConflict) && !got.Failure.Is(backends.ErrNotAuthorized) {
				t.Errorf("the error is neither ErrConflict nor ErrNotAuthorized: %v", got.Failure)
			}
			wantRules(t, home, 0)
			m := f.enable(tcp(8080), external(deniedPort))
			if m.Backend != name || m.External.Port() < 1024 {
				t.Errorf("%+v", m.state)
			}
			home.Reaches(t, echo, m.External)
			home.DoesNotReach(t, echo, externalAddr(home, deniedPort))
			f.disable()
			wantRules(t, home, 0)
		})
	}
}

// pcpProgram uses only the PCP client. Another host has mapped the external port 8080.
// After each step it sends the number of responses that the client received, and waits
// until the test has inspected the router.
var pcpProgram = lab.Func("pcp client", func(p *lab.Proc) {
	var gateway netip.Addr
	p.Args(&gateway)
	var log bytes.Buffer
	b, err := pcp.New(pcp.Config{
		Gateway: netip.AddrPortFrom(gateway, 0), FirstWait: 250 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		p.Fatal(err)
	}
	ctx, c := context.Background(), b.Client()
	step := func(err, want error) {
		if !errors.Is(err, want) {
			p.Fatalf("%v, want %v", err, want)
		}
		p.Send(bytes.Count(log.Bytes(), []byte("reply received")))
		log.Reset()
		p.Receive(nil)
	}
	step(c.Unmap(ctx, backends.TCP, 80, pcp.Nonce{1}), nil)
	_, err = c.Map(ctx, pcp.MapRequest{
		Protocol: backends.TCP, InternalPort: 80, ExternalPort: 8080, Lifetime: time.Minute, Options: pcp.Options{PreferFailure: true},
	})
	step(err, backends.ErrConflict)
	r, err := c.Map(ctx, pcp.MapRequest{
		Protocol: backends.TCP, InternalPort: 80, ExternalPort: 8081, Lifetime: time.Minute,
		Options: pcp.Options{PreferFailure: true, Description: "goforward"},
	})
	step(err, nil)
	step(c.Unmap(ctx, backends.TCP, 80, pcp.Nonce{1}), backends.ErrNotAuthorized)
	step(c.Unmap(ctx, backends.TCP, 80, r.Nonce), nil)
	_, err = b.Map(ctx, backends.Request{
		Protocol: backends.TCP, Internal: netip.AddrPortFrom(netip.Addr{}, 80), Description: "goforward",
	})
	step(err, nil)
	if err := b.Close(); err != nil {
		p.Fatal(err)
	}
})

// TestPCP checks the PCP client without a Forwarder: the deletion of an absent mapping,
// PREFER_FAILURE, which this router ignores, and one request for each mapping with a
// description.
func TestPCP(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "pcp: the client alone")
	home, _ := homeWithTakenPort(t)
	p := home.Lan.Start(t, pcpProgram, home.Gateway)
	for i, want := range []struct{ responses, rules int }{
		{1, 1}, // Unmap of an absent mapping
		{2, 1}, // Map with PreferFailure of a taken port, which is deleted again
		{1, 2}, // Map with a description
		{1, 2}, // Unmap with another nonce
		{1, 1}, // Unmap
		{1, 2}, // Map of the Backend with a description
	} {
		var responses int
		p.Expect(&responses)
		if responses != want.responses {
			t.Errorf("step %d: %d responses, want %d", i, responses, want.responses)
		}
		wantRules(t, home, want.rules)
		p.Send("go on")
	}
	p.Wait()
}
