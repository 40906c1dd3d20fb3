package labtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// upnpOnly is a router that refuses NAT-PMP and PCP.
var upnpOnly = lab.Router{Refuse5351: true}

// withConf returns router with more lines in the configuration of its daemon.
func withConf(router lab.Router, conf ...string) lab.Router {
	router.ExtraConf = append(conf, router.ExtraConf...)
	return router
}

func TestUPnP(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]lab.Router{
		"alone":                              upnpOnly,
		"alone, the others silent":           {Silent5351: true},
		"version 1":                          withConf(upnpOnly, "force_igd_desc_v1=yes"),
		"without secure mode":                {Refuse5351: true, AnyClient: true},
		"a control port of the day":          withConf(upnpOnly, "http_port=0"),
		"every port below 1024 is forbidden": {Refuse5351: true, DenyLowPorts: true},
	} {
		for protocol, o := range map[string]option{"TCP": tcp(8080), "UDP": udp(8080), "both": both(8080)} {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, "upnp: "+name+", "+protocol)
				testUPnP(t, router, o)
			})
		}
	}
}

func testUPnP(t *testing.T, router lab.Router, o option) {
	home := lab.Home(t, router)
	f := newForwarder(t, home.Lan, config{})
	got := f.do(call{Op: "enable", Options: []option{o}})
	m, _ := f.toMapping(got)
	t.Logf("granted after %v", got.Took)
	if m.External != externalAddr(home, 8080) || m.Backend != "upnp" || m.Scope != "public" || m.Gateway.Addr() != home.Gateway {
		t.Errorf("%+v", m.state)
	}
	for _, g := range m.Grants {
		if remaining := time.Until(g.Expires()); remaining < time.Hour || remaining > 2*time.Hour {
			t.Errorf("%v expires in %v, want two hours", g.Protocol, remaining)
		}
		echo := home.Lan.Echo(t, g.Protocol.String(), g.Internal.String())
		home.Reaches(t, echo, g.External)
		defer func() { home.DoesNotReach(t, echo, g.External) }()
	}
	wantRules(t, home, len(m.Grants))
	if addr := f.externalIP(); addr != home.External {
		t.Errorf("external address %v, want %v", addr, home.External)
	}
	f.disable()
	wantRules(t, home, 0)
}

func TestUPnPRenew(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: renewed for several lifetimes")
	testRenewal(t, upnpOnly, "upnp")
}

// TestUPnPRestart checks restarts of the router. With http_port=0, the control port of
// the daemon changes at each restart.
func TestUPnPRestart(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]lab.Router{
		"the port stays": upnpOnly,
		"the port moves": withConf(upnpOnly, "http_port=0"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "upnp: the router restarts, "+name)
			home := lab.Home(t, router)
			f := newForwarder(t, home.Lan, config{})
			byTCP, byUDP := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "udp", ":8080")
			m := f.enable(both(8080))
			f.wantEvent(forward.EventMapped)
			for range 3 {
				home.Reaches(t, byTCP, m.External)
				home.Reaches(t, byUDP, m.External)
				powerOff(t, home)
				home.DoesNotReach(t, byTCP, m.External)
				home.Daemon.Start(t)
				begin := time.Now()
				waitReachable(t, home, byTCP, m.External, maxWait)
				waitReachable(t, home, byUDP, m.External, maxWait)
				t.Logf("the first bytes arrived %v after the router was ready", time.Since(begin))
			}
			f.disable()
			wantRules(t, home, 0)
		})
	}
}

// TestUPnPRestartUnannounced checks a router that does not announce its restart. The next
// renewal restores the mapping.
func TestUPnPRestartUnannounced(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]lab.Router{
		"the port stays": upnpOnly,
		"the port moves": withConf(upnpOnly, "http_port=0"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "upnp: the router restarts without a word, "+name)
			home := lab.Home(t, router)
			home.Router.Rule(t, "output", `oifname "lan0" ip daddr 224.0.0.0/3 drop`)
			f := newForwarder(t, home.Lan, config{Lifetime: shortLease})
			echo := home.Lan.Echo(t, "tcp", ":8080")
			m := f.enable(tcp(8080))
			home.Reaches(t, echo, m.External)
			powerOff(t, home)
			home.DoesNotReach(t, echo, m.External)
			home.Daemon.Start(t)
			took := waitReachable(t, home, echo, m.External, 2*shortLease)
			t.Logf("bytes arrived %v after the router was ready", took)
			f.disable()
			wantRules(t, home, 0)
		})
	}
}

// TestUPnPTo checks that a port is forwarded to another host of the home if the router
// allows it.
func TestUPnPTo(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: to another host, in secure mode and not")
	for secure, router := range map[bool]lab.Router{true: upnpOnly, false: {Refuse5351: true, AnyClient: true}} {
		home := lab.Home(t, router)
		other := home.Join("neighbour", "192.168.77.3/24")
		echo := other.Echo(t, "tcp", ":80")
		f := newForwarder(t, home.Lan, config{})
		if secure {
			connections := countPackets(t, home.Router, "input", "connections", `iifname "lan0" tcp dport 5000 tcp flags syn`)
			f.wantEnableError([]error{backends.ErrNotAuthorized}, tcp(80), external(8080), to(echo.Addr))
			t.Logf("%d connections", connections.packets(t))
			if n := connections.packets(t); n > 12 {
				t.Errorf("%d connections: other ports were tried", n)
			}
			wantRules(t, home, 0)
			continue
		}
		m := f.enable(tcp(80), external(8080), to(echo.Addr))
		home.Reaches(t, echo, m.External)
		f.disable()
		home.DoesNotReach(t, echo, m.External)
		wantRules(t, home, 0)
	}
}

func TestUPnPLowPorts(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: ports below 1024 are forbidden")
	home := lab.Home(t, lab.Router{Refuse5351: true, DenyLowPorts: true})
	echo := home.Lan.Echo(t, "tcp", ":80")
	f := newForwarder(t, home.Lan, config{})
	f.wantEnableError([]error{backends.ErrNotAuthorized}, tcp(80), exact)
	m := f.enable(tcp(80))
	if m.External.Port() < 1024 {
		t.Errorf("%+v", m.state)
	}
	home.Reaches(t, echo, m.External)
}

func TestUPnPPrivateWAN(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: the router's own address is private")
	home := lab.Home(t, lab.Router{Refuse5351: true, WAN: netip.MustParsePrefix("10.66.66.1/24")})
	connections := countPackets(t, home.Router, "input", "connections", `iifname "lan0" tcp dport 5000 tcp flags syn / syn,ack`)
	f := newForwarder(t, home.Lan, config{})
	f.wantEnableError([]error{backends.ErrPrivateWAN}, tcp(8080))
	if n := connections.packets(t); n > 8 {
		t.Errorf("%d connections: other ports were tried", n)
	}
	wantRules(t, home, 0)
}

func TestUPnPPinhole(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: an IPv6 pinhole")
	home := lab.Home(t, lab.Router{IPv6: true, Refuse5351: true})
	for network, o := range map[string]option{"tcp": tcp(8080), "udp": udp(8080)} {
		echo := home.Lan.Echo(t, network, lanAddr6(home, 8080).String())
		home.DoesNotReach(t, echo, lanAddr6(home, 8080))
		f := newForwarder(t, home.Lan, config{})
		got := f.do(call{Op: "enable", Options: []option{o, overIPv6}})
		m, _ := f.toMapping(got)
		t.Logf("opened after %v", got.Took)
		if m.External != lanAddr6(home, 8080) || m.Backend != "upnp" {
			t.Errorf("%+v", m.state)
		}
		home.Reaches(t, echo, m.External)
		m.refresh()
		home.Reaches(t, echo, m.External)
		wantPinholes(t, home, 1)
		f.disable()
		wantPinholes(t, home, 0)
		home.DoesNotReach(t, echo, m.External)
	}
}

// TestUPnPTwoPrograms checks two programs that request the same external port. The second
// gets another port, and the first still receives bytes. The router itself would give the
// port to the second program, because both programs run on one host.
func TestUPnPTwoPrograms(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: two programs want one external port")
	home := lab.Home(t, upnpOnly)
	first, second := newForwarder(t, home.Lan, config{}), newForwarder(t, home.Lan, config{})
	one, two := home.Lan.Echo(t, "tcp", ":8080"), home.Lan.Echo(t, "tcp", ":8081")
	m := first.enable(tcp(8080), external(9000))
	other := second.enable(tcp(8081), external(9000))
	if other.External.Port() == 9000 {
		t.Errorf("both programs got %v", other.External)
	}
	home.Reaches(t, one, m.External)
	home.Reaches(t, two, other.External)
	second.wantEnableError([]error{backends.ErrConflict}, tcp(8082), external(9000), exact)
	home.Reaches(t, one, m.External)
	second.disable()
	home.Reaches(t, one, m.External)
	wantRules(t, home, 1)
}

// TestUPnPTaken checks that a port which another host has mapped is not taken over.
func TestUPnPTaken(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: the port is another host's")
	home := lab.Home(t, lab.Router{NoPCP: true})
	neighbourEcho := occupyPort(t, home, "tcp", 8080)
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{Protocols: []string{"upnp"}})
	f.wantEnableError([]error{backends.ErrConflict}, tcp(8080), exact)
	m := f.enable(tcp(8080))
	if m.External.Port() == 8080 || m.Backend != "upnp" {
		t.Errorf("%+v", m.state)
	}
	home.Reaches(t, echo, m.External)
	home.Reaches(t, neighbourEcho, externalAddr(home, 8080))
	f.disable()
	wantRules(t, home, 1)
}

// TestMappings checks that UPnP lists the router's table, including the mappings that
// another protocol created.
//
// It does not run in parallel: on a busy machine, the router can be late with its reply to NAT-PMP,
// and PCP is chosen.
func TestMappings(t *testing.T) {
	lab.Scenario(t, "upnp: the table, where mappings go by NAT-PMP")
	home := lab.Home(t, lab.Router{AnyClient: true}) // this lets a host delete the mappings of other hosts
	occupyPort(t, home, "udp", 9000)
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(both(8080))
	if m.Backend != "natpmp" {
		t.Errorf("%+v", m.state)
	}
	f.enable(tcp(8081), permanent)
	var got []string
	for _, e := range f.mappings() {
		mark := ""
		if e.Ours {
			mark = " ours"
		}
		got = append(got, e.Mapping.Protocol.String()+" "+e.Mapping.External.String()+" "+e.Mapping.Internal.String()+mark)
	}
	want := []string{
		"tcp 45.45.45.1:8080 192.168.77.2:8080 ours", "tcp 45.45.45.1:8081 192.168.77.2:8081 ours",
		"udp 45.45.45.1:8080 192.168.77.2:8080 ours", "udp 45.45.45.1:9000 192.168.77.3:80",
	}
	wantSameLines(t, got, want)

	// Delete one mapping of the neighbour, and then all mappings.
	f.disable(foreign, external(9000))
	if n := f.disableAll(foreign, everything); n != 2 {
		t.Errorf("%d disabled, want the two of this Forwarder", n)
	}
	if rest := f.mappings(); len(rest) != 0 {
		t.Errorf("remaining: %+v", rest)
	}
	wantRules(t, home, 0)
}

// TestLargeTable checks that a large table of another host is listed without harm to the
// router. To create so many mappings by requests would take minutes, so the test writes
// the rules into the firewall in the form that the daemon uses.
func TestLargeTable(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: a table of 150 entries of others")
	home := lab.Home(t, lab.Router{})
	const n = 150
	var script strings.Builder
	for i := range n {
		fmt.Fprintf(&script, `add rule inet filter prerouting_miniupnpd iif "wan0" meta l4proto udp th dport %d dnat ip to 192.168.77.3:%d comment "other"`+"\n", 20000+i, 20000+i)
	}
	home.Router.Nft(t, script.String())
	wantRules(t, home, n)
	f := newForwarder(t, home.Lan, config{Protocols: []string{"upnp"}})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	m := f.enable(tcp(8080))
	begin := time.Now()
	entries := f.mappings()
	t.Logf("%d entries in %v", len(entries), time.Since(begin))
	own := 0
	for _, e := range entries {
		if e.Ours {
			own++
		}
	}
	if len(entries) != n+1 || own != 1 {
		t.Errorf("%d entries, %d of them our own, want %d and 1", len(entries), own, n+1)
	}
	home.Reaches(t, echo, m.External)
	f.disable()
	wantRules(t, home, n)
}

// upnpMapping is an entry that a program adds with AddPortMapping.
type upnpMapping struct {
	Protocol string
	Port     uint16
}

// addMappings adds entries to the table of the router, and lists the table by index.
var addMappings = lab.Func("add mappings", func(p *lab.Proc) {
	var all []upnpMapping
	p.Args(&all)
	ctx := context.Background()
	device, err := upnp.Describe(ctx, "http://192.168.77.1:5000/rootDesc.xml", upnp.ClientConfig{})
	if err != nil {
		p.Fatal(err)
	}
	i := slices.IndexFunc(device.Services, func(s upnp.Service) bool { return s.Kind() == upnp.IPConnection })
	if i < 0 {
		p.Fatal("no service")
	}
	c, err := upnp.NewClient(device.Services[i], upnp.ClientConfig{})
	if err != nil {
		p.Fatal(err)
	}
	for _, m := range all {
		protocol, err := backends.ParseProtocol(m.Protocol)
		if err == nil {
			err = c.AddPortMapping(ctx, upnp.PortMapping{
				ExternalPort: m.Port, Protocol: protocol, Internal: netip.AddrPortFrom(p.Addr(), m.Port), Enabled: true, Description: "other", Lease: time.Hour,
			})
		}
		if err != nil {
			p.Fatal(err)
		}
	}
	var rows []string
	for i := range all {
		e, err := c.PortMappingAt(ctx, i)
		if err != nil {
			p.Fatal(err)
		}
		rows = append(rows, fmt.Sprint(e.Protocol, e.ExternalPort, e.Internal, e.Description))
	}
	p.Send(rows)
})

// TestTableOrder checks that tables that are read in lists and by index have all entries of
// the router, in the order of its index, and that the router survives the requests.
func TestTableOrder(t *testing.T) {
	t.Parallel()
	for _, n := range []int{100, 140} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, fmt.Sprintf("upnp: a table of %d entries, in the order of the router", n))
			home := lab.Home(t, upnpOnly)
			all := make([]upnpMapping, n)
			for i := range all {
				protocol := "udp"
				if i < 20 || i >= 40 && i%2 == 0 { // blocks, and then pairs
					protocol = "tcp"
				}
				all[i] = upnpMapping{protocol, uint16(20000 + i)}
			}
			p := home.Lan.Start(t, addMappings, all)
			var want []string
			p.Expect(&want)
			p.Wait()
			f := newForwarder(t, home.Lan, config{})
			for range 2 {
				var got []string
				for _, e := range f.mappings() {
					got = append(got, fmt.Sprint(e.Mapping.Protocol, e.Mapping.External.Port(), e.Mapping.Internal, e.Mapping.Description))
				}
				if strings.Join(got, "\n") != strings.Join(want, "\n") {
					t.Errorf("listed %q, want %q", got, want)
				}
			}
			wantRules(t, home, n)
		})
	}
}

// wantSameLines compares lines in any order.
func wantSameLines(t *testing.T, got, want []string) {
	t.Helper()
	missing := func(from, in []string) (out []string) {
		for _, line := range from {
			if !strings.Contains("\n"+strings.Join(in, "\n")+"\n", "\n"+line+"\n") {
				out = append(out, line)
			}
		}
		return out
	}
	if absent, extra := missing(want, got), missing(got, want); len(absent)+len(extra) > 0 || len(got) != len(want) {
		t.Errorf("missing: %q\nunexpected: %q\ngot: %q", absent, extra, got)
	}
}

var upnpcLine = regexp.MustCompile(`(?m)^ *\d+ (TCP|UDP) +(\d+)->([0-9.]+:\d+)`)

// TestUPnPC checks that Debian's upnpc and goforward list the same table.
func TestUPnPC(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: upnpc and goforward see the same table")
	home := lab.Home(t, lab.Router{})
	occupyPort(t, home, "tcp", 9000)
	f := newForwarder(t, home.Lan, config{Protocols: []string{"upnp"}})
	f.enable(both(8080))
	f.enable(tcp(8081), external(9001))
	var upnpcEntries, ownEntries []string
	for _, m := range upnpcLine.FindAllStringSubmatch(home.Lan.Exec(t, "upnpc", "-l"), -1) {
		upnpcEntries = append(upnpcEntries, strings.ToLower(m[1])+" "+m[2]+" "+m[3])
	}
	for _, e := range f.mappings() {
		_, port, _ := strings.Cut(e.Mapping.External.String(), ":")
		ownEntries = append(ownEntries, e.Mapping.Protocol.String()+" "+port+" "+e.Mapping.Internal.String())
	}
	if len(upnpcEntries) != 4 {
		t.Errorf("upnpc lists %q", upnpcEntries)
	}
	wantSameLines(t, ownEntries, upnpcEntries)

	// goforward deletes a mapping that upnpc created.
	home.Lan.Exec(t, "upnpc", "-a", "192.168.77.2", "8090", "8090", "TCP")
	echo := home.Lan.Echo(t, "tcp", ":8090")
	home.Reaches(t, echo, externalAddr(home, 8090))
	f.disable(foreign, tcp(8090))
	home.DoesNotReach(t, echo, externalAddr(home, 8090))
	wantRules(t, home, 4)
}

// TestTwoIGDs checks that the device of the default route's router is used, or the device
// that Config names.
func TestTwoIGDs(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: two routers on one network")
	home := lab.Home(t, upnpOnly)
	other := home.SecondRouter(t, lab.Router{Refuse5351: true, WAN: netip.MustParsePrefix("46.46.46.1/24")})
	echo := home.Lan.Echo(t, "tcp", ":8080")
	for range 3 {
		f := newForwarder(t, home.Lan, config{})
		m := f.enable(tcp(8080))
		if m.Gateway.Addr() != home.Gateway || m.External != externalAddr(home, 8080) {
			t.Errorf("%+v", m.state)
		}
		home.Reaches(t, echo, m.External)
		wantRules(t, other, 0)
		f.close()
	}
	f := newForwarder(t, home.Lan, config{UPnPURL: "http://" + other.Gateway.String() + ":5000/rootDesc.xml"})
	m := f.enable(tcp(8080))
	if m.Gateway.Addr() != other.Gateway || m.External != externalAddr(other, 8080) {
		t.Errorf("%+v", m.state)
	}
	wantRules(t, other, 1)
	wantRules(t, home, 0)
	f.close()
	wantRules(t, other, 0)
}

// rogueDeviceProgram responds to every search before the gateway does, with the locations
// in its arguments. Its HTTP servers send an endless body.
var rogueDeviceProgram = lab.Func("rogue device", func(p *lab.Proc) {
	var locations []string
	p.Args(&locations)
	pc, err := net.ListenMulticastUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(239, 255, 255, 250), Port: 1900})
	if err != nil {
		p.Fatal(err)
	}
	for _, port := range []string{":80", ":5000", ":8888"} {
		ln, err := net.Listen("tcp", port)
		if err != nil {
			p.Fatal(err)
		}
		go serveEndlessBody(ln)
	}
	p.Send("ready")
	buf := make([]byte, 2048)
	for {
		_, from, err := pc.ReadFrom(buf)
		if err != nil {
			p.Fatal(err)
		}
		for i, location := range locations {
			const gateway = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
			_, _ = pc.WriteTo(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: %s\r\nST: %s\r\nUSN: uuid:%d::%s\r\nBOOTID.UPNP.ORG: 1\r\n\r\n",
				location, gateway, i, gateway), from)
		}
	}
})

func serveEndlessBody(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n<root>")
			for err == nil {
				_, err = io.WriteString(conn, "<device><deviceList>")
			}
		}()
	}
}

// TestRogueDevice checks a rogue device in the home that responds to searches with false
// locations. The client contacts no other host because of them, and it contacts the rogue
// device only a few times. It still finds the router's device quickly.
func TestRogueDevice(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: a stranger answers the search with lying locations")
	home := lab.Home(t, upnpOnly)
	rogue := home.Join("rogue", "192.168.77.66/24")
	bystander := home.Join("bystander", "192.168.77.67/24")
	locations := []string{
		"http://192.168.77.67/rootDesc.xml", "http://127.0.0.1:8888/secret", "http://[::1]:8888/secret",
		"http://45.45.45.2/rootDesc.xml", "http://router.example/rootDesc.xml", "https://192.168.77.67/rootDesc.xml",
		"http://user:password@192.168.77.67/", "http://192.168.77.67:80@192.168.77.66/", "http://0.0.0.0:8888/", "http://[fe80::1%3]/",
		"ftp://192.168.77.67/", "http://192.168.77.255/", "http://239.255.255.250/", "",
	}
	for i := range 200 { // more than a client should try
		locations = append(locations, fmt.Sprintf("http://192.168.77.66:5000/%d", i))
	}
	bystanderConns := countPackets(t, bystander, "input", "bystander", `tcp flags syn / syn,ack`)
	outsideConns := countPackets(t, home.Wan, "input", "outside", `tcp dport 80 tcp flags syn / syn,ack`)
	localConns := countPackets(t, home.Lan, "input", "local", `iifname "lo" tcp dport 8888`)
	rogueConns := countPackets(t, rogue, "input", "rogue", `tcp flags syn / syn,ack`)
	var ready string
	rogue.Start(t, rogueDeviceProgram, locations).Expect(&ready)

	echo := home.Lan.Echo(t, "tcp", ":8080")
	for range 3 {
		f := newForwarder(t, home.Lan, config{})
		got := f.do(call{Op: "enable", Options: []option{tcp(8080)}})
		m, _ := f.toMapping(got)
		t.Logf("granted after %v", got.Took)
		if m.Gateway.Addr() != home.Gateway || m.External != externalAddr(home, 8080) {
			t.Errorf("%+v", m.state)
		}
		home.Reaches(t, echo, m.External)
		f.close()
	}
	for what, c := range map[string]packetCounter{"another host": bystanderConns, "a host outside": outsideConns, "this host": localConns} {
		if n := c.packets(t); n != 0 {
			t.Errorf("%s was contacted %d times because of a false location", what, n)
		}
	}
	t.Logf("the rogue device received %d connections", rogueConns.packets(t))
	if n := rogueConns.packets(t); n > 3*2 {
		t.Errorf("the rogue device received %d connections", n)
	}
}
