package gatewaytest_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// firewall is a gateway that answers over IPv6, and a host there.
func firewall(t *testing.T, config gatewaytest.Config) (*gatewaytest.Gateway, host) {
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
	gw := start(t, config)
	conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(gw.Addr6()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return gw, host{t, conn}
}

func TestPinholeTCP(t *testing.T) {
	t.Parallel()
	gw, h := firewall(t, gatewaytest.Config{ManualClock: true, External: netip.MustParseAddr("10.0.0.1"), Quirks: quirks.Quirks{PCP: quirks.PCP{RefusePrivate: true}}})
	port := serve(t, "tcp6", "[::1]:0")
	to := netip.AddrPortFrom(netip.IPv6Loopback(), port)
	hole := func(m *pcp.MapRequest) { m.InternalPort = port }
	const from = "[2001:db8::9]:7000"

	reaches(t, gw, from, to.String(), false)
	r := h.pcp(hole) // the wish for 8080 is none for a firewall
	want(t, r, pcp.Success, 2*time.Hour)
	if netip.AddrPortFrom(r.External, r.ExternalPort) != to {
		t.Errorf("external %v port %d, want the internal %v", r.External, r.ExternalPort, to)
	}
	if e := only(t, gw); e.Internal != to || e.External != to || e.Service != "pcp" {
		t.Errorf("entry %+v", e)
	}
	reaches(t, gw, from, to.String(), true)
	c, err := gw.Dial(waiting(t), "tcp6", to.String())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != netip.MustParseAddr("2001:db8::100") {
		t.Errorf("from %v", got)
	}
	_ = c.Close()

	want(t, h.pcp(func(m *pcp.MapRequest) { hole(m); m.Nonce = theirs }), pcp.NotAuthorized, 2*time.Hour)
	gw.Advance(2 * time.Hour)
	reaches(t, gw, from, to.String(), false)
	h.pcp(func(m *pcp.MapRequest) {
		hole(m)
		m.Options.Filters = []pcp.Filter{{Prefix: netip.MustParsePrefix("2001:db8:9::/48")}}
	})
	reaches(t, gw, from, to.String(), false)
	reaches(t, gw, "[2001:db8:9::1]:1", to.String(), true)
	want(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); hole(m) }), pcp.Success, 0)
	reaches(t, gw, "[2001:db8:9::1]:1", to.String(), false)

	r = h.pcp(func(m *pcp.MapRequest) { hole(m); m.ExternalPort, m.Options.PreferFailure = port-1, true })
	want(t, r, pcp.CannotProvideExternal, 30*time.Minute)
	r = h.pcp(func(m *pcp.MapRequest) { hole(m); m.External = netip.IPv4Unspecified() })
	want(t, r, pcp.CannotProvideExternal, 30*time.Minute)
	if r := peer(h, func(m *pcp.PeerRequest) {
		m.InternalPort, m.Remote = port, netip.MustParseAddrPort(from)
	}); r.Result != pcp.Success || r.ExternalPort != port {
		t.Errorf("peer: %+v", r)
	}
	reaches(t, gw, from, to.String(), true)
	reaches(t, gw, "[2001:db8::9]:7001", to.String(), false)
}

func TestPinholeUDP(t *testing.T) {
	t.Parallel()
	gw, h := firewall(t, gatewaytest.Config{})
	service, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	_ = service.SetDeadline(time.Now().Add(patience))
	port := service.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv6Loopback(), port))
	out, err := gw.ListenPacket("udp6", "[2001:db8::5]:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	_ = out.SetDeadline(time.Now().Add(patience))

	_, _ = out.WriteTo([]byte("lost"), to)
	want(t, h.pcp(func(m *pcp.MapRequest) { m.Protocol, m.InternalPort = backends.UDP, port }), pcp.Success, 2*time.Hour)
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
	// An IPv6 socket reaches no IPv4 mapping, and the other way round.
	_, _ = out.WriteTo([]byte("lost"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("45.45.45.1:8080")))
	if s := gw.Stats(); s.Lost != 2 || s.Datagrams != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestIPv6Port(t *testing.T) {
	t.Parallel()
	pc, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skipf("IPV6 NOT TESTED: %v", err)
	}
	defer pc.Close()
	_ = pc.SetDeadline(time.Now().Add(patience))
	gw, h := firewall(t, gatewaytest.Config{
		ManualClock: true, Quirks: quirks.Quirks{
			AnnounceCount: 1,
			PCP:           quirks.PCP{UpdateCount: 1},
		}, Announce6: pc.LocalAddr().(*net.UDPAddr).AddrPort(),
	})
	gw.Advance(1234 * time.Second)
	h.ask("02000000 00000000 00000000 00000000 00000000 00000001")
	if got := h.ask("0000"); got != "028000010000070"+"8000004d2000000000000000000000000" {
		t.Errorf("NAT-PMP over IPv6: %s", got)
	}
	gw.Restart(gatewaytest.RestartOptions{})
	b := make([]byte, 100)
	n, from, err := pc.ReadFrom(b)
	if err != nil || n != 24 || from.String() != gw.Addr6().String() {
		t.Errorf("announced %x by %v, %v", b[:n], from, err)
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
	h.ask("0000")
	if gw.Addr() == gw.Addr6() || start(t, gatewaytest.Config{}).Addr6().IsValid() {
		t.Error("Addr6 is wrong")
	}
}

func TestFamilies(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	var want *net.AddrError
	for network, address := range map[string]string{"tcp6": "45.45.45.1:1", "tcp4": "[::1]:1", "udp6": "1.2.3.4:5", "udp4": "[::1]:2"} {
		if _, err := gw.Dial(waiting(t), network, address); !errors.As(err, &want) {
			t.Errorf("%s %s: %v", network, address, err)
		}
	}
	if _, err := gw.ListenPacket("udp6", "1.2.3.4:5"); !errors.As(err, &want) {
		t.Errorf("listening: %v", err)
	}
	if _, err := gw.DialFrom(waiting(t), netip.MustParseAddrPort("45.45.45.9:1"), "tcp", "[::1]:1"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("from IPv4 to IPv6: %v", err)
	}
	if _, err := gatewaytest.Start(gatewaytest.Config{Listen6: netip.MustParseAddrPort("[2001:db8::1]:0")}); err == nil {
		t.Error("started on an address that is not here")
	}
}
