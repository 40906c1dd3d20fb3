package gatewaytest_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// startIPv6 starts a gateway that also listens on IPv6, and returns it with a host on
// IPv6.
func startIPv6(t *testing.T, config gatewaytest.Config) (*gatewaytest.Gateway, host) {
	t.Helper()
	probe, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		if gw, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[::1]:0")}); err == nil {
			_ = gw.Close()
			t.Error("started without IPv6")
		}
		t.Skipf("IPV6 NOT TESTED: no ::1 on this machine (%v)", err)
	}
	_ = probe.Close()
	config.Listen6 = netip.MustParseAddrPort("[::1]:0")
	gw := startGateway(t, config)
	conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(gw.Addr6()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	return gw, host{t, conn}
}

func TestPinholeTCP(t *testing.T) {
	t.Parallel()
	gw, h := startIPv6(t, gatewaytest.Config{ManualClock: true, External: netip.MustParseAddr("10.0.0.1"), Quirks: quirks.Quirks{PCP: quirks.PCP{RefusePrivate: true}}})
	port := serveEcho(t, "tcp6", "[::1]:0")
	to := netip.AddrPortFrom(netip.IPv6Loopback(), port)
	setPort := func(m *pcp.MapRequest) { m.InternalPort = port }
	const from = "[2001:db8::9]:7000"

	checkReach(t, gw, from, to.String(), false)
	r := h.pcp(setPort) // a firewall ignores the requested port 8080
	checkResult(t, r, pcp.Success, 2*time.Hour)
	if netip.AddrPortFrom(r.External, r.ExternalPort) != to {
		t.Errorf("external %v port %d, want the internal %v", r.External, r.ExternalPort, to)
	}
	if e := onlyEntry(t, gw); e.Internal != to || e.External != to || e.Service != "pcp" {
		t.Errorf("entry %+v", e)
	}
	checkReach(t, gw, from, to.String(), true)
	c, err := gw.Dial(testContext(t), "tcp6", to.String())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != netip.MustParseAddr("2001:db8::100") {
		t.Errorf("connection from %v", got)
	}
	_ = c.Close()

	checkResult(t, h.pcp(func(m *pcp.MapRequest) { setPort(m); m.Nonce = nonceB }), pcp.NotAuthorized, 2*time.Hour)
	gw.Advance(2 * time.Hour)
	checkReach(t, gw, from, to.String(), false)
	h.pcp(func(m *pcp.MapRequest) {
		setPort(m)
		m.Options.Filters = []pcp.Filter{{Prefix: netip.MustParsePrefix("2001:db8:9::/48")}}
	})
	checkReach(t, gw, from, to.String(), false)
	checkReach(t, gw, "[2001:db8:9::1]:1", to.String(), true)
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); setPort(m) }), pcp.Success, 0)
	checkReach(t, gw, "[2001:db8:9::1]:1", to.String(), false)

	r = h.pcp(func(m *pcp.MapRequest) { setPort(m); m.ExternalPort, m.Options.PreferFailure = port-1, true })
	checkResult(t, r, pcp.CannotProvideExternal, 30*time.Minute)
	r = h.pcp(func(m *pcp.MapRequest) { setPort(m); m.External = netip.IPv4Unspecified() })
	checkResult(t, r, pcp.CannotProvideExternal, 30*time.Minute)
	if r := peer(h, func(m *pcp.PeerRequest) {
		m.InternalPort, m.Remote = port, netip.MustParseAddrPort(from)
	}); r.Result != pcp.Success || r.ExternalPort != port {
		t.Errorf("peer: %+v", r)
	}
	checkReach(t, gw, from, to.String(), true)
	checkReach(t, gw, "[2001:db8::9]:7001", to.String(), false)
}

func TestPinholeUDP(t *testing.T) {
	t.Parallel()
	gw, h := startIPv6(t, gatewaytest.Config{})
	service, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	_ = service.SetDeadline(time.Now().Add(testTimeout))
	port := service.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv6Loopback(), port))
	out, err := gw.ListenPacket("udp6", "[2001:db8::5]:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	_ = out.SetDeadline(time.Now().Add(testTimeout))

	_, _ = out.WriteTo([]byte("lost"), to)
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { m.Protocol, m.InternalPort = backends.UDP, port }), pcp.Success, 2*time.Hour)
	_, _ = out.WriteTo([]byte("hello"), to)
	b := make([]byte, 100)
	n, from, err := service.ReadFrom(b)
	if err != nil || string(b[:n]) != "hello" {
		t.Fatalf("got %q, %v", b[:n], err)
	}
	_, _ = service.WriteTo([]byte("you"), from)
	n, from, err = out.ReadFrom(b)
	if err != nil || string(b[:n]) != "you" || from.String() != to.String() {
		t.Errorf("got %q from %v, %v", b[:n], from, err)
	}
	// An IPv6 socket cannot reach an IPv4 mapping.
	_, _ = out.WriteTo([]byte("lost"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("45.45.45.1:8080")))
	if s := gw.Stats(); s.Lost != 2 || s.Datagrams != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestPCPOverIPv6(t *testing.T) {
	t.Parallel()
	pc, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer pc.Close()
	_ = pc.SetDeadline(time.Now().Add(testTimeout))
	gw, h := startIPv6(t, gatewaytest.Config{
		ManualClock: true, Uptime: 1234 * time.Second, Announce6: pc.LocalAddr().(*net.UDPAddr).AddrPort(),
		Quirks: quirks.Quirks{AnnounceCount: 1, PCP: quirks.PCP{UpdateCount: 1}},
	})
	h.request("02000000 00000000 00000000 00000000 00000000 00000001")
	if got := h.request("0000"); got != "028000010000070"+"8000004d2000000000000000000000000" {
		t.Errorf("response to NAT-PMP over IPv6: %s", got)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	b := make([]byte, 100)
	n, from, err := pc.ReadFrom(b)
	if err != nil || n != 24 || from.String() != gw.Addr6().String() {
		t.Errorf("announcement %x from %v, %v", b[:n], from, err)
	}
	h.pcp(nil)
	gw.UpdateMappings()
	if r := h.response(); r.Result != pcp.Success || r.External != netip.IPv6Loopback() {
		t.Errorf("update %+v", r)
	}
	gw.Down()
	_, _ = h.Write([]byte{0, 0})
	if _, err := h.Read(b); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.Errno(10054)) {
		t.Errorf("while down: %v", err)
	}
	if err := gw.Up(); err != nil {
		t.Fatal(err)
	}
	h.request("0000")
	if gw.Addr() == gw.Addr6() || startGateway(t, gatewaytest.Config{}).Addr6().IsValid() {
		t.Error("Addr6 is wrong")
	}
}

func TestAddressFamilies(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	var want *net.AddrError
	for network, address := range map[string]string{"tcp6": "45.45.45.1:1", "tcp4": "[::1]:1", "udp6": "1.2.3.4:5", "udp4": "[::1]:2"} {
		if _, err := gw.Dial(testContext(t), network, address); !errors.As(err, &want) {
			t.Errorf("%s %s: %v", network, address, err)
		}
	}
	if _, err := gw.ListenPacket("udp6", "1.2.3.4:5"); !errors.As(err, &want) {
		t.Errorf("listening: %v", err)
	}
	if _, err := gw.DialFrom(testContext(t), netip.MustParseAddrPort("45.45.45.9:1"), "tcp", "[::1]:1"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("from IPv4 to IPv6: %v", err)
	}
	if _, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[2001:db8::1]:0")}); err == nil {
		t.Error("started on an address that this host does not have")
	}
}

const firewallService = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"

// startFirewallClient starts a gateway, and returns a client for its IPv6 firewall
// service, over IPv6.
func startFirewallClient(t *testing.T, config gatewaytest.Config) (igdClient, host) {
	t.Helper()
	config.ManualClock = true
	gw, h := startIPv6(t, config)
	return igdClient{t, gw, "::1", hostPort(t, gw.UPnP().DescriptionURL6()), "/ctl/0/WANIPv6FirewallControl", firewallService}, h
}

// addPinhole opens a pinhole for TCP port 8080 of ::1 for one hour, unless the pairs
// change this, and returns its UniqueID and the fault code.
func (c igdClient) addPinhole(pairs ...string) (id string, code int) {
	c.t.Helper()
	args := []string{"RemoteHost", "", "RemotePort", "0", "InternalClient", "::1", "InternalPort", "8080", "Protocol", "6", "LeaseTime", "3600"}
	for i := 0; i < len(pairs); i += 2 {
		for j := 0; j < len(args); j += 2 {
			if args[j] == pairs[i] {
				args[j+1] = pairs[i+1]
			}
		}
	}
	got, code := c.call("AddPinhole", args...)
	return got["UniqueID"], code
}

// pinholeAction calls an action on a pinhole and returns the fault code.
func (c igdClient) pinholeAction(action, id string, more ...string) int {
	c.t.Helper()
	_, code := c.call(action, append([]string{"UniqueID", id}, more...)...)
	return code
}

func TestUPnPPinhole(t *testing.T) {
	t.Parallel()
	c, h := startFirewallClient(t, gatewaytest.Config{TableLimit: 3})
	port := itoa(int(serveEcho(t, "tcp6", "[::1]:0")))
	to := "[::1]:" + port
	const from, other = "[2001:db8::9]:7000", "[2001:db8::8]:7000"
	id, code := c.addPinhole("InternalPort", port, "RemoteHost", "2001:db8::9")
	renewedID, _ := c.addPinhole("InternalPort", port, "RemoteHost", "2001:db8::9", "LeaseTime", "60")
	if e := onlyEntry(t, c.gw); code != 0 || renewedID != id || e.Remaining != time.Minute || e.Service != "upnp" || e.External != e.Internal {
		t.Errorf("fault %d, pinholes %s, %s: %+v", code, id, renewedID, e)
	}
	checkReach(t, c.gw, from, to, true)
	checkReach(t, c.gw, other, to, false)
	secondID, code := c.addPinhole("InternalPort", port, "RemoteHost", "2001:db8::8", "RemotePort", "7000")
	if code != 0 || secondID == id {
		t.Errorf("second pinhole: %s, fault %d", secondID, code)
	}
	checkReach(t, c.gw, other, to, true)
	checkReach(t, c.gw, "[2001:db8::8]:7001", to, false)
	// PCP can open its own pinhole for the same endpoint.
	r := h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = parsePort(t, port), 0 })
	checkResult(t, r, pcp.Success, 2*time.Hour)
	checkReach(t, c.gw, "[2001:db8::7]:1", to, true)
	_, code = c.addPinhole("InternalPort", "9")
	checkCodes(t, []int{code, c.pinholeAction("UpdatePinhole", id, "NewLeaseTime", "120"), c.pinholeAction("DeletePinhole", secondID)}, 701, 0, 0)
	c.gw.Advance(119 * time.Second)
	checkReach(t, c.gw, from, to, true)
	if args, code := c.call("GetPinholePackets", "UniqueID", id); code != 0 || args["PinholePackets"] != "2" {
		t.Errorf("packets %v, fault %d", args, code)
	}
	c.gw.Advance(time.Second)
	checkCodes(t, []int{c.pinholeAction("CheckPinholeWorking", id), c.pinholeAction("UpdatePinhole", id, "NewLeaseTime", "1"), c.pinholeAction("DeletePinhole", secondID)}, 704, 704, 704)
	if e := onlyEntry(t, c.gw); e.Service != "pcp" {
		t.Errorf("remaining entry %+v", e)
	}
}

// parsePort parses a decimal port.
func parsePort(t *testing.T, text string) uint16 {
	t.Helper()
	var n uint16
	for _, digit := range text {
		n = n*10 + uint16(digit-'0')
	}
	return n
}

func TestUPnPPinholeRefusals(t *testing.T) {
	t.Parallel()
	c, _ := startFirewallClient(t, gatewaytest.Config{
		Protocols: []string{"upnp"}, Quirks: quirks.Quirks{UPnP: igdQuirks{Rules: rulesQuirks{LowPorts: 606}}},
	})
	for _, tt := range []struct {
		pairs string
		code  int
	}{
		{"InternalPort 0", 706},
		{"InternalPort x", 402},
		{"InternalClient ", 708},
		{"InternalClient *", 708},
		{"InternalClient 2001:db8::1", 606},
		{"InternalClient 127.0.0.1", 606},
		{"InternalClient host", 402},
		{"Protocol 65535", 707},
		{"Protocol 132", 705},
		{"Protocol 262", 705},
		{"LeaseTime 0", 402},
		{"LeaseTime 86401", 402},
		{"RemoteHost 45.45.45.2", 402},
		{"InternalPort 1023", 606},
		{"RemoteHost ::", 0},
		{"RemotePort 65535", 0},
		{"Protocol 17", 0},
		{"LeaseTime 86400", 0},
	} {
		name, value, _ := strings.Cut(tt.pairs, " ")
		if _, code := c.addPinhole(name, value); code != tt.code {
			t.Errorf("%s: fault %d, want %d", tt.pairs, code, tt.code)
		}
	}
	v4 := c
	v4.from, v4.to = "127.0.0.1", hostPort(t, c.gw.UPnP().DescriptionURL())
	_, code := v4.addPinhole()
	_, client := v4.addPinhole("InternalClient", "127.0.0.1")
	checkCodes(t, []int{code, client, v4.pinholeAction("DeletePinhole", "1"), c.pinholeAction("DeletePinhole", "0"), c.pinholeAction("DeletePinhole", "x")}, 606, 606, 606, 704, 402)
	_, code = c.call("GetOutboundPinholeTimeout")
	checkCodes(t, []int{code}, 501)
}

func TestUPnPFirewallQuirks(t *testing.T) {
	t.Parallel()
	type firewall = quirks.Firewall
	for name, tt := range map[string]struct {
		quirks  firewall
		status  string // FirewallEnabled and InboundPinholeAllowed
		codes   []int  // of AddPinhole, CheckPinholeWorking, and two times DeletePinhole
		through bool
	}{
		"none":          {firewall{}, "1 1", []int{0, 0, 0, 704}, true},
		"disabled":      {firewall{Disabled: true}, "0 1", []int{702, 704, 702, 702}, true},
		"not allowed":   {firewall{NotAllowed: true}, "1 0", []int{703, 704, 703, 703}, false},
		"never working": {firewall{NeverWorking: true}, "1 1", []int{0, 709, 0, 704}, true},
		"absent is 402": {firewall{Absent: 402}, "1 1", []int{0, 0, 0, 402}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := startFirewallClient(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Firewall: tt.quirks}}})
			port := itoa(int(serveEcho(t, "tcp6", "[::1]:0")))
			args, _ := c.call("GetFirewallStatus")
			if got := args["FirewallEnabled"] + " " + args["InboundPinholeAllowed"]; got != tt.status {
				t.Errorf("status %s, want %s", got, tt.status)
			}
			id, code := c.addPinhole("InternalPort", port)
			if id == "" {
				id = "1"
			}
			checkReach(t, c.gw, "[2001:db8::9]:7000", "[::1]:"+port, tt.through)
			checkCodes(t, []int{code, c.pinholeAction("CheckPinholeWorking", id), c.pinholeAction("DeletePinhole", id), c.pinholeAction("DeletePinhole", id)}, tt.codes...)
		})
	}
}

// TestUPnPOverIPv6 checks that description, search and control work over IPv6 as over
// IPv4.
func TestUPnPOverIPv6(t *testing.T) {
	t.Parallel()
	c, _ := startFirewallClient(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: igdQuirks{Description: quirks.Description{
		URLBase: quirks.URLBaseNoPort, ControlURL: quirks.ControlAbsolute,
	}}}})
	_, body := splitResponse(c.get("/rootDesc.xml"))
	for _, want := range []string{"<URLBase>http://[::1]/</URLBase>", "<controlURL>http://" + c.to + "/ctl/0/WANIPConnection</controlURL>"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in %s", want, body)
		}
	}
	s := searcher{t, c.gw, udpSocket(t, "[::1]:0"), c.gw.UPnP().SSDP6()}
	s.send(strings.Replace(searchFor(igd2), "239.255.255.250:1900", "[FF02::C]:1900", 1))
	if got, from := s.receive(); header(got, "LOCATION") != c.gw.UPnP().DescriptionURL6() || from != s.to {
		t.Errorf("from %v %q", from, got)
	}
	c.path, c.service = ipPath, ipConnection
	checkCodes(t, []int{c.add("InternalClient", "::1"), c.add()}, 402, 606) // port mappings are for IPv4 hosts only
}
