package gatewaytest_test

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// fakeTB is a TB whose failures are recorded and do not end the real test.
type fakeTB struct {
	failed   bool
	cleanups []func()
}

func (r *fakeTB) Helper()          {}
func (r *fakeTB) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *fakeTB) Fatal(...any)     { r.failed = true; panic(r) }

// TestNew checks that New closes the gateway when the test ends, and fails the test if
// the gateway does not start.
func TestNew(t *testing.T) {
	t.Parallel()
	var tb fakeTB
	gw := gatewaytest.New(&tb, gatewaytest.Config{})
	if tb.failed || len(tb.cleanups) != 1 {
		t.Fatalf("%+v", tb)
	}
	if up := gw.Stats().Epoch; up < 24*time.Hour {
		t.Errorf("epoch %v is too small to detect a restart", up)
	}
	tb.cleanups[0]()
	if err := gw.Up(); err == nil {
		t.Error("Up succeeds after the end of the test")
	}
	func() {
		defer func() { _ = recover() }()
		gatewaytest.New(&tb, gatewaytest.Config{Protocols: []string{"igd"}})
	}()
	if !tb.failed || len(tb.cleanups) != 1 {
		t.Errorf("unknown protocol: %+v", tb)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]gatewaytest.Config{
		"listen":   {Listen: netip.MustParseAddrPort("[::1]:0")},
		"external": {External: netip.MustParseAddr("2001:db8::1")},
		"bounds":   {MinLifetime: 2, MaxLifetime: 1},
		"negative": {TableLimit: -1},
		"uptime":   {Uptime: -1},
		"filters":  {Quirks: quirks.Quirks{PCP: quirks.PCP{MaxFilters: -1}}},
		"listen6":  {Listen6: netip.MustParseAddrPort("127.0.0.1:0")},
		"ipv6 without pcp and upnp": {
			Listen6: netip.MustParseAddrPort("[::1]:0"), Protocols: []string{"natpmp"},
		},
		"protocol":                  {Protocols: []string{"natpmp", "NAT-PMP"}},
		"igd version":               {Quirks: quirks.Quirks{UPnP: quirks.UPnP{Version: 3}}},
		"igd over ipv6":             {ListenHTTP: netip.MustParseAddrPort("[::1]:0")},
		"igd multicast":             {ListenSSDP: netip.MustParseAddrPort("239.255.255.250:1900")},
		"igd name":                  {Quirks: quirks.Quirks{UPnP: quirks.UPnP{UDN: "router"}}},
		"description path":          {Quirks: quirks.Quirks{UPnP: quirks.UPnP{Description: quirks.Description{Path: "x"}}}},
		"connected":                 {Quirks: quirks.Quirks{UPnP: quirks.UPnP{Description: quirks.Description{Connected: 1}}}},
		"igd lease":                 {Quirks: quirks.Quirks{UPnP: quirks.UPnP{Leases: quirks.Leases{Max: -1}}}},
		"igd client":                {Quirks: quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{ListedClient: netip.IPv6Loopback()}}}},
		"announce6 without listen6": {Announce6: netip.MustParseAddrPort("[::1]:5350")},
	} {
		if gw, err := gatewaytest.Start(config); !errors.Is(err, backends.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
			_ = gw.Close()
		}
	}
	gw := startGateway(t, gatewaytest.Config{})
	if _, err := gatewaytest.Start(gatewaytest.Config{Listen: gw.Addr()}); err == nil {
		t.Error("started two gateways on one port")
	}
}

// announceListener is a socket that receives announcements.
type announceListener struct {
	t  *testing.T
	pc net.PacketConn
	gw *gatewaytest.Gateway
}

// startAnnounceListener opens a socket, and starts a gateway that announces to it.
func startAnnounceListener(t *testing.T, config gatewaytest.Config) announceListener {
	t.Helper()
	pc, _ := listenUDP(t)
	config.Announce = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	return announceListener{t, pc, startReference(t, config)}
}

// expect checks that the next announcements, in hex, are these.
func (a announceListener) expect(want ...string) {
	a.t.Helper()
	for _, want := range want {
		b := make([]byte, 100)
		n, from, err := a.pc.ReadFrom(b)
		if err != nil {
			a.t.Fatal(err)
		}
		if got := hex.EncodeToString(b[:n]); got != want || from.String() != a.gw.Addr().String() {
			a.t.Errorf("announcement %s from %v, want %s from %v", got, from, want, a.gw.Addr())
		}
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	a := startAnnounceListener(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceCount: 1}})
	static := otherHostEntry(backends.TCP, 80)
	static.Static = true
	if err := a.gw.AddMapping(static); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, a.gw)
	h.request(mapTCP)

	a.gw.Restart(gatewaytest.RestartOptions{KeepTable: true, KeepEpoch: true})
	a.expect("00800000000004d2cb007107")
	if n := len(a.gw.Table()); n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
	a.gw.Restart(gatewaytest.RestartOptions{Silent: true})
	if e := onlyEntry(t, a.gw); !e.Static {
		t.Errorf("entries after the restart: %v", e)
	}
	h.expect("0000", "0080 0000 00000000 cb007107")
	a.gw.Advance(3 * time.Second)
	a.gw.Announce()
	a.expect("0080000000000003cb007107") // the silent restart sent no announcement before this one
	a.gw.SetExternal(netip.MustParseAddr("45.45.45.7"))
	a.expect("00800000000000032d2d2d07")
	h.expect("0000", "0080 0000 00000003 2d2d2d07")
	a.gw.SetExternal(netip.Addr{})
	a.expect("008000030000000300000000")
	h.expect("0000", "0080 0003 00000003 00000000")
	if n := a.gw.Stats().Announcements; n != 4 {
		t.Errorf("%d announcements counted, want 4", n)
	}
}

func TestAnnounceForms(t *testing.T) {
	t.Parallel()
	const pmp, pcp = "00800000000004d2cb007107", "0280000000000000000004d2000000000000000000000000"
	a := startAnnounceListener(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceCount: 2, AnnounceAs: quirks.AnnounceBoth}})
	a.gw.Announce()
	a.expect(pmp, pcp, pmp, pcp) // the second round is sent 250 ms later
	for retry := true; retry; {  // repeat until both calls precede the second packet of the first series
		a = startAnnounceListener(t, gatewaytest.Config{Quirks: quirks.Quirks{AnnounceCount: 2, AnnounceAs: quirks.AnnouncePCP}})
		begin := time.Now()
		a.gw.Announce()
		a.gw.Announce() // ends the first series
		retry = time.Since(begin) > 200*time.Millisecond
	}
	a.expect(pcp, pcp, pcp)
	h := newHost(t, a.gw)
	for range 200 {
		h.request("0000") // gives the first series time to send another packet
	}
	a.gw.Down()
	a.gw.Announce()
	if n := a.gw.Stats().Announcements; n != 3 {
		t.Errorf("%d announcements, want 3", n)
	}
}

// TestSetExternal checks that the mappings have the current external address of the
// gateway.
func TestSetExternal(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	_, port := listenTCP(t)
	newHost(t, gw).mapPort(2, port, 7200)
	gw.SetExternal(netip.MustParseAddr("45.45.45.7"))
	if got := onlyEntry(t, gw).External.String(); got != "45.45.45.7:8080" {
		t.Errorf("external %s", got)
	}
	if _, err := gw.Dial(testContext(t), "tcp", "45.45.45.1:8080"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("dialing the old address: %v", err)
	}
	c, err := gw.Dial(testContext(t), "tcp", "45.45.45.7:8080")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	gw.SetExternal(netip.IPv4Unspecified())
	if _, err := gw.Dial(testContext(t), "tcp", "0.0.0.0:8080"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("dialing without an external address: %v", err)
	}
}

func TestDownUp(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	h.request(mapTCP)
	for range 3 {
		gw.Down()
		gw.Down()
		h.send("0000")
		// On loopback, the client receives the ICMP error immediately, on systems that
		// report it.
		if _, err := h.Read(make([]byte, 100)); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.Errno(10054)) {
			t.Errorf("while down: %v", err)
		}
		if err := gw.Up(); err != nil {
			t.Fatal(err)
		}
		if err := gw.Up(); err != nil {
			t.Fatal(err)
		}
		h.expect("0000", addrReply)
		onlyEntry(t, gw)
	}
}

func TestTwoGateways(t *testing.T) {
	t.Parallel()
	gw1 := startReference(t, gatewaytest.Config{})
	gw2 := startReference(t, gatewaytest.Config{External: netip.MustParseAddr("45.45.45.2")})
	newHost(t, gw1).expect(mapTCP, mapTCPReply)
	newHost(t, gw2).expect("0000", "0080 0000 000004d2 2d2d2d02")
	if gw1.Addr() == gw2.Addr() || len(gw1.Table()) != 1 || len(gw2.Table()) != 0 {
		t.Errorf("the gateways are not independent: %v %v", gw1.Table(), gw2.Table())
	}
}

// firstDatagram listens at an address, calls trigger, and returns the first datagram
// that arrives.
func firstDatagram(t *testing.T, at netip.AddrPort, trigger func()) string {
	t.Helper()
	pc, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	trigger()
	_ = pc.SetReadDeadline(time.Now().Add(testTimeout))
	b := make([]byte, 2048)
	n, err := pc.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// TestDefaultAnnounceAddresses checks that each gateway chooses its own announcement
// addresses, and announces the protocols that it supports.
func TestDefaultAnnounceAddresses(t *testing.T) {
	t.Parallel()
	gw := gatewaytest.New(t, gatewaytest.Config{})
	pcpOnly := gatewaytest.New(t, gatewaytest.Config{Protocols: []string{"pcp"}})
	all := map[netip.AddrPort]bool{}
	for _, at := range []netip.AddrPort{gw.AnnounceAddr(), gw.NotifyAddr(), pcpOnly.AnnounceAddr(), pcpOnly.NotifyAddr()} {
		if all[at] || !at.Addr().IsLoopback() || at.Port() == 0 {
			t.Errorf("address %v is in use or invalid; earlier addresses: %v", at, all)
		}
		all[at] = true
	}
	if got := firstDatagram(t, gw.AnnounceAddr(), gw.Announce); len(got) != 12 || got[0] != 0 {
		t.Errorf("announcement %x, want NAT-PMP", got)
	}
	if got := firstDatagram(t, gw.NotifyAddr(), gw.Announce); !strings.HasPrefix(got, "NOTIFY ") {
		t.Errorf("notification %q", got)
	}
	if got := firstDatagram(t, pcpOnly.AnnounceAddr(), pcpOnly.Announce); len(got) != 24 || got[0] != 2 {
		t.Errorf("announcement %x, want PCP", got)
	}
	if n := pcpOnly.Stats().Notifications; n != 0 {
		t.Errorf("%d notifications without UPnP", n)
	}

	none := netip.MustParseAddrPort("127.0.0.1:0")
	silent := gatewaytest.New(t, gatewaytest.Config{Announce: none, Notify: none})
	upnpOnly := gatewaytest.New(t, gatewaytest.Config{Protocols: []string{"upnp"}})
	silent.Announce()
	upnpOnly.Announce()
	if s := silent.Stats(); s.Announcements != 0 || s.Notifications != 0 || silent.AnnounceAddr() != none || silent.NotifyAddr() != none {
		t.Errorf("a gateway with announcements disabled announces at %v and %v: %+v", silent.AnnounceAddr(), silent.NotifyAddr(), s)
	}
	if s := upnpOnly.Stats(); s.Announcements != 0 || s.Notifications == 0 {
		t.Errorf("announcements of a gateway that supports only UPnP: %+v", s)
	}
}

// TestDownUnknownProtocol checks that Down panics if the protocol does not exist.
func TestDownUnknownProtocol(t *testing.T) {
	t.Parallel()
	gw := gatewaytest.New(t, gatewaytest.Config{})
	defer func() {
		if recover() == nil {
			t.Error("Down did not panic for an unknown protocol")
		}
	}()
	gw.Down("upnp", "nat-pmp")
}
