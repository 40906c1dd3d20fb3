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

// serve answers one byte with the same on each connection to a port of its own.
func serve(t *testing.T, network, address string) uint16 {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("NOT TESTED: %v", err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 1)
			if _, err := c.Read(b); err == nil {
				_, _ = c.Write(b)
			}
			_ = c.Close()
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

// reaches sends a byte there and back over TCP, or wants the connection refused.
func reaches(t *testing.T, gw *gatewaytest.Gateway, from, to string, admitted bool) {
	t.Helper()
	c, err := gw.DialFrom(waiting(t), netip.MustParseAddrPort(from), "tcp", to)
	if !admitted {
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s to %s: %v, want connection refused", from, to, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s to %s: %v", from, to, err)
		return
	}
	defer c.Close()
	b := []byte{42}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(b); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(b); n != 1 || b[0] != 42 {
		t.Errorf("%s to %s: read %d bytes, %v", from, to, n, err)
	}
}

func TestPCPFilters(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{})
	h := newHost(t, gw)
	port := serve(t, "tcp4", "127.0.0.1:0")
	filter := func(filters ...pcp.Filter) pcp.MapResponse {
		return h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.Options.Filters = port, filters })
	}
	check := func(first, second bool) {
		t.Helper()
		reaches(t, gw, "45.45.45.9:7000", "45.45.45.1:8080", first)
		reaches(t, gw, "45.45.46.3:7000", "45.45.45.1:8080", second)
	}
	filter()
	check(true, true)
	one, other := pcp.Filter{Prefix: netip.MustParsePrefix("45.45.45.8/31")}, pcp.Filter{Prefix: netip.MustParsePrefix("45.45.46.0/24"), Port: 7000}
	if r := filter(one); len(r.Options.Filters) != 1 || r.Options.Filters[0] != one {
		t.Errorf("options %+v", r.Options)
	}
	check(true, false)
	filter() // stays
	check(true, false)
	filter(other) // in addition
	check(true, true)
	reaches(t, gw, "45.45.46.3:7001", "45.45.45.1:8080", false)
	filter(anyFilter, other) // instead
	check(false, true)
	filter(anyFilter)
	check(true, true)

	ignorant := start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{FilterIgnored: true}}})
	gw, h = ignorant, newHost(t, ignorant)
	filter(one)
	check(true, true)
}

func peer(h host, edit func(*pcp.PeerRequest)) pcp.PeerResponse {
	h.t.Helper()
	m := pcp.PeerRequest{
		Client: h.client(), Lifetime: time.Hour, Nonce: ours, Protocol: backends.TCP, InternalPort: 8080,
		Remote: netip.MustParseAddrPort("45.45.45.9:7000"),
	}
	edit(&m)
	b, err := m.MarshalBinary()
	if err != nil {
		h.t.Fatal(err)
	}
	_, _ = h.Write(b)
	b = make([]byte, 1200)
	n, err := h.Read(b)
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := pcp.ParsePeerResponse(b[:n])
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func TestPCPPeer(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{ManualClock: true})
	h := newHost(t, gw)
	port := serve(t, "tcp4", "127.0.0.1:0")
	first := func(m *pcp.PeerRequest) { m.InternalPort, m.ExternalPort = port, 8080 }
	second := func(m *pcp.PeerRequest) {
		m.InternalPort, m.Nonce, m.Remote = port, theirs, netip.MustParseAddrPort("45.45.46.3:7000")
		m.Lifetime = 2 * time.Hour
	}
	check := func(one, other, another bool) {
		t.Helper()
		reaches(t, gw, "45.45.45.9:7000", "45.45.45.1:8080", one)
		reaches(t, gw, "45.45.46.3:7000", "45.45.45.1:8080", other)
		reaches(t, gw, "45.45.45.9:7001", "45.45.45.1:8080", another)
	}
	if r := peer(h, first); r.Result != pcp.Success || r.ExternalPort != 8080 || r.External != gw.External() || r.Lifetime != time.Hour {
		t.Errorf("first: %+v", r)
	}
	check(true, false, false)
	if r := peer(h, second); r.Result != pcp.Success || r.ExternalPort != 8080 {
		t.Errorf("second, from the same port: %+v", r)
	}
	check(true, true, false)
	if r := peer(h, func(m *pcp.PeerRequest) { second(m); m.ExternalPort = 81 }); r.Result != pcp.CannotProvideExternal {
		t.Errorf("another port: %+v", r)
	}
	if r := peer(h, func(m *pcp.PeerRequest) { second(m); m.Nonce = ours }); r.Result != pcp.NotAuthorized || r.Lifetime != 2*time.Hour {
		t.Errorf("another nonce: %+v", r)
	}
	if r := peer(h, func(m *pcp.PeerRequest) { first(m); m.Lifetime = 0 }); r.Result != pcp.Success || r.Lifetime != time.Hour {
		t.Errorf("deleting: %+v", r)
	}
	want(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); m.InternalPort = port }), pcp.NotAuthorized, 30*time.Minute)
	gw.Advance(90 * time.Minute)
	check(false, true, false)

	// A mapping joins at the same place, and goes again without it.
	r := h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = port, 90 })
	if r.ExternalPort != 8080 {
		t.Errorf("port %d, want the same 8080", r.ExternalPort)
	}
	check(true, true, true)
	want(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); m.InternalPort = port }), pcp.Success, 0)
	check(false, true, false)

	for name, edit := range map[string]func(*pcp.PeerRequest){
		"no peer port": func(m *pcp.PeerRequest) { m.Remote = netip.AddrPortFrom(m.Remote.Addr(), 0) },
		"no peer":      func(m *pcp.PeerRequest) { m.Remote = netip.MustParseAddrPort("0.0.0.0:1") },
		"ipv6 peer":    func(m *pcp.PeerRequest) { m.Remote = netip.MustParseAddrPort("[2001:db8::1]:1") },
		"all ports":    func(m *pcp.PeerRequest) { m.InternalPort = 0 },
	} {
		if r := peer(h, edit); r.Result != pcp.MalformedRequest {
			t.Errorf("%s: %+v", name, r)
		}
	}
	none := newHost(t, start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{NoPeer: true}}}))
	if r := peer(none, first); r.Result != pcp.UnsupportedOpcode {
		t.Errorf("no peers: %+v", r)
	}
}

func TestPCPAllPorts(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{AllPorts: true, ThirdParty: true}}})
	h := newHost(t, gw)
	port := serve(t, "tcp4", "127.0.0.1:0")
	to := netip.AddrPortFrom(gw.External(), port).String()
	all := func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 0, 0 }
	everything := func(m *pcp.MapRequest) { all(m); m.Protocol = 0 }
	other := func(m *pcp.MapRequest) { m.Options.ThirdParty = neighbour.Addr() }

	for _, edit := range []func(*pcp.MapRequest){all, everything} {
		reaches(t, gw, "45.45.45.9:1", to, false)
		r := h.pcp(edit)
		want(t, r, pcp.Success, 2*time.Hour)
		if r.External != gw.External() || r.ExternalPort != 0 {
			t.Errorf("response %+v", r)
		}
		reaches(t, gw, "45.45.45.9:1", to, true)
		want(t, h.pcp(func(m *pcp.MapRequest) { edit(m); other(m) }), pcp.UnsupportedProtocol, 30*time.Minute)
		want(t, h.pcp(other), pcp.NoResources, 30*time.Second) // no port is left to others
		want(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); m.InternalPort = port }), pcp.Success, 0)
		reaches(t, gw, "45.45.45.9:1", to, true) // that was another entry
		want(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); edit(m) }), pcp.Success, 0)
	}
	reaches(t, gw, "45.45.45.9:1", to, false)
	// A filter at a port counts, whatever stands behind it.
	h.pcp(all)
	h.pcp(func(m *pcp.MapRequest) {
		m.InternalPort, m.ExternalPort = port, port
		m.Options.Filters = []pcp.Filter{{Prefix: netip.MustParsePrefix("45.45.46.0/24")}}
	})
	reaches(t, gw, "45.45.45.9:1", to, false)
	reaches(t, gw, "45.45.46.9:1", to, true)
}

func TestPCPThirdParty(t *testing.T) {
	t.Parallel()
	gw := start(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{ThirdParty: true}}})
	h := newHost(t, gw)
	r := h.pcp(func(m *pcp.MapRequest) { m.Options.ThirdParty = neighbour.Addr() })
	want(t, r, pcp.Success, 2*time.Hour)
	if e := only(t, gw); e.Internal.String() != "127.0.0.99:8080" || r.Options.ThirdParty != neighbour.Addr() {
		t.Errorf("entry %v, options %+v", e, r.Options)
	}
	want(t, h.pcp(unmap), pcp.Success, 0) // of our own there is none
	only(t, gw)
	want(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); m.Options.ThirdParty = neighbour.Addr() }), pcp.Success, 0)
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("left: %v", all)
	}
}
