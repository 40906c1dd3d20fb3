package labtest

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// searchGroups are the multicast groups that a host may send to on the LAN: SSDP, and the
// announcements of NAT-PMP and PCP.
var searchGroups = []netip.Addr{
	netip.MustParseAddr("239.255.255.250"), netip.MustParseAddr("224.0.0.1"),
	netip.MustParseAddr("ff02::c"), netip.MustParseAddr("ff05::c"), netip.MustParseAddr("ff02::1"),
}

// TestReachLinks captures all links while a program maps its ports, verifies them without a
// prober and ends. Only the router is contacted.
func TestReachLinks(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*testing.T, *reachLab){
		"a path that works": nil, "a host firewall drops": lanFirewall(""),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "reach: without a prober, only the router is contacted, "+name)
			testReachLinks(t, set)
		})
	}
}

func testReachLinks(t *testing.T, setUp func(*testing.T, *reachLab)) {
	t.Helper()
	l := &reachLab{home: lab.Home(t, lab.Router{IPv6: true})}
	suppressAnnouncements(t, l.home)
	l.home.SecondUplink(t, lab.Uplink{})
	if setUp != nil {
		setUp(t, l)
	}
	lan, wan, second := l.home.Lan.Capture(t, "eth0"), l.home.Router.Capture(t, "wan0"), l.home.Lan.Capture(t, "eth1")
	l.program = startProber(t, l.home.Lan)
	l.program.call(reachCall{Op: "listen"}, nil)
	before := len(lan.Packets())
	r := l.program.call(reachCall{Op: "verify mappings", Within: 2 * maxWait}, nil)
	for _, m := range r.Mappings {
		t.Logf("%s, proven %s, %.2f s: %s; %s", m.Verdict, m.Proven, m.Took.Seconds(), m.Reason, m.Evidence)
		if m.Verdict == reach.Reachable.String() || m.Proven == reach.LevelInternet.String() {
			t.Errorf("FALSE REACHABLE: %+v", m)
		}
	}
	if len(r.Mappings) != 4 {
		t.Errorf("%d mappings were verified, want 4", len(r.Mappings))
	}
	verified := len(lan.Packets())
	l.program.call(reachCall{Op: "close"}, nil)
	if verified == before {
		t.Error("the verification sent no packet")
	}
	l.program.proc.Send(reachCall{Op: "exit"})
	l.program.proc.Wait()

	routers := routerAddrs(t, l.home)
	for i, p := range lan.Packets() {
		allowed := slices.Contains(routers, p.From.Addr())
		if p.Out {
			allowed = slices.Contains(routers, p.To.Addr()) || slices.Contains(searchGroups, p.To.Addr())
		}
		if !allowed {
			t.Errorf("packet %d of the LAN (the verification begins with %d): %+v", i, before, p)
		}
	}
	for link, c := range map[string]*lab.Capture{"WAN": wan, "second uplink": second} {
		for _, p := range c.Packets() {
			t.Errorf("packet of the %s: %+v", link, p)
		}
	}
	t.Logf("%d packets on the LAN, %d of them for the verification of four mappings", len(lan.Packets()), verified-before)

	// The captures work: a packet to the internet appears in both.
	if _, err := l.home.Lan.SendUDP(t, l.home.Wan.Echo(t, "udp", ":7").Addr, "hello"); err != nil {
		t.Fatal(err)
	}
	for link, c := range map[string]*lab.Capture{"LAN": lan, "WAN": wan} {
		if !slices.ContainsFunc(c.Packets(), func(p lab.Packet) bool { return strings.Contains(string(p.Payload), "hello") }) {
			t.Errorf("the capture of the %s misses a packet", link)
		}
	}
}

// TestReachDirect verifies the ports of a host with a public address, which needs no router. Nothing
// is contacted, and a visit from the internet is proof. A visit from its own network is none.
func TestReachDirect(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "reach: a host with a public address")
	home := lab.Home(t, lab.Router{IPv6: true})
	host, visitor := home.Wan, home.Lan
	home.SecondUplink(t, lab.Uplink{Addr: netip.MustParsePrefix("46.46.47.2/24"), Untranslated: true})
	host.Exec(t, "ip", "route", "add", "default", "via", home.External.String())
	program := startProber(t, host)
	program.call(reachCall{Op: "listen", Network: "4"}, nil)
	links := []*lab.Capture{host.Capture(t, "eth0"), host.Capture(t, "eth1")}
	verify := func(want ...string) {
		t.Helper()
		for _, link := range links {
			link.Reset()
		}
		r := program.call(reachCall{Op: "verify mappings", Within: maxWait}, nil)
		for _, link := range links {
			for _, p := range link.Packets() {
				t.Errorf("packet: %+v", p)
			}
		}
		for i, m := range r.Mappings {
			t.Logf("%s, proven %s: %s; %s", m.Verdict, m.Proven, m.Reason, m.Evidence)
			if got := m.Verdict + ", " + m.Proven; i >= len(want) || got != want[i] {
				t.Errorf("mapping %d: %s, want %q", i, got, want)
			}
		}
	}
	visit := func(source string) {
		t.Helper()
		if reply, err := visitor.SendTCP(t, addrPort(host, reachPort), "hello"); err != nil || reply != programText {
			t.Fatalf("visit from %s: %q, %v", source, reply, err)
		}
	}
	verify("unknown, listening", "unknown, listening")
	visit("the network of the host")
	verify("unknown, listening", "unknown, listening")
	visitor.Exec(t, "ip", "route", "add", host.Addr().String()+"/32", "via", "46.46.47.1", "dev", "eth1")
	visit("the internet")
	verify("reachable, internet", "unknown, listening")
}

// routerAddrs returns all addresses of the router.
func routerAddrs(t *testing.T, home *lab.HomeNet) (all []netip.Addr) {
	t.Helper()
	for field := range strings.FieldsSeq(home.Router.Exec(t, "ip", "-o", "addr", "show")) {
		if p, err := netip.ParsePrefix(field); err == nil && !p.Addr().IsLoopback() {
			all = append(all, p.Addr())
		}
	}
	return all
}
