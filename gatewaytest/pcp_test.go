package gatewaytest_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

var (
	ours, theirs = pcp.Nonce{1, 2, 3}, pcp.Nonce{9, 8, 7}
	anyFilter    pcp.Filter
)

// client is the host's address.
func (h host) client() netip.Addr { return h.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap() }

// pcp asks for 8080 over TCP with our nonce and two hours, as changed by edit.
func (h host) pcp(edit func(*pcp.MapRequest)) pcp.MapResponse {
	h.t.Helper()
	m := pcp.MapRequest{
		Client: h.client(), Lifetime: 2 * time.Hour, Nonce: ours, Protocol: backends.TCP,
		InternalPort: 8080, ExternalPort: 8080,
	}
	if edit != nil {
		edit(&m)
	}
	return h.roundTrip(m)
}

func (h host) roundTrip(m pcp.MapRequest) pcp.MapResponse {
	h.t.Helper()
	b, err := m.MarshalBinary()
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.Write(b); err != nil {
		h.t.Fatal(err)
	}
	return h.response()
}

// response is the next packet.
func (h host) response() pcp.MapResponse {
	h.t.Helper()
	b := make([]byte, 2000)
	n, err := h.Read(b)
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := pcp.ParseMapResponse(b[:n])
	if err != nil {
		h.t.Fatalf("%x: %v", b[:n], err)
	}
	return r
}

// unmap deletes what pcp maps.
func unmap(m *pcp.MapRequest) { m.Lifetime, m.ExternalPort = 0, 0 }

// want checks a response's result and lifetime.
func want(t *testing.T, r pcp.MapResponse, result pcp.ResultCode, lifetime time.Duration) {
	t.Helper()
	if r.Result != result || r.Lifetime != lifetime {
		t.Errorf("%v for %v, want %v for %v", r.Result, r.Lifetime, result, lifetime)
	}
}

func TestPCPNonce(t *testing.T) {
	t.Parallel()
	foreign := func(m *pcp.MapRequest) { m.Nonce = theirs }
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	want(t, h.pcp(nil), pcp.Success, 2*time.Hour)
	gw.Advance(time.Hour)
	want(t, h.pcp(foreign), pcp.NotAuthorized, time.Hour)
	want(t, h.pcp(func(m *pcp.MapRequest) { foreign(m); unmap(m) }), pcp.NotAuthorized, time.Hour)
	if got := only(t, gw).Remaining; got != time.Hour {
		t.Errorf("a refused renewal left %v", got)
	}
	want(t, h.pcp(nil), pcp.Success, 2*time.Hour)
	want(t, h.pcp(unmap), pcp.Success, 0)
	want(t, h.pcp(foreign), pcp.Success, 2*time.Hour)

	gw = reference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{NonceLoose: true}}})
	h = newHost(t, gw)
	want(t, h.pcp(nil), pcp.Success, 2*time.Hour)
	want(t, h.pcp(func(m *pcp.MapRequest) { foreign(m); unmap(m) }), pcp.NotAuthorized, 2*time.Hour)
	want(t, h.pcp(foreign), pcp.Success, 2*time.Hour)
	want(t, h.pcp(unmap), pcp.NotAuthorized, 2*time.Hour) // it is theirs now
	want(t, h.pcp(func(m *pcp.MapRequest) { foreign(m); unmap(m) }), pcp.Success, 0)
}

func TestPCPTable(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{MinLifetime: 2 * time.Minute, MaxLifetime: time.Hour})
	if err := gw.AddMapping(taken(backends.TCP, 81)); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, gw)
	sctp := func(m *pcp.MapRequest) { m.Protocol, m.ExternalPort = backends.SCTP, 99 }
	for _, tt := range []struct {
		name     string
		edit     func(*pcp.MapRequest)
		external string
		lifetime time.Duration
	}{
		{"as wished", nil, "203.0.113.7:8080", time.Hour},
		{"the port already assigned", func(m *pcp.MapRequest) { m.ExternalPort = 9 }, "203.0.113.7:8080", time.Hour},
		{"too short", func(m *pcp.MapRequest) { m.Lifetime = time.Second }, "203.0.113.7:8080", 2 * time.Minute},
		{"taken by ourselves", func(m *pcp.MapRequest) { m.InternalPort = 1 }, "203.0.113.7:8081", time.Hour},
		{"taken by another", func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 2, 81 }, "203.0.113.7:82", time.Hour},
		{"no wish", func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 3, 0 }, "203.0.113.7:3", time.Hour},
		{"another address", func(m *pcp.MapRequest) {
			m.InternalPort, m.ExternalPort, m.External = 4, 4, netip.MustParseAddr("192.0.2.1")
		}, "203.0.113.7:4", time.Hour},
		{"the gateway's own port", func(m *pcp.MapRequest) {
			m.Protocol, m.InternalPort, m.ExternalPort = backends.UDP, 5, 5350
		}, "203.0.113.7:5352", time.Hour},
		{"icmp", func(m *pcp.MapRequest) { m.Protocol = 1 }, "203.0.113.7:8080", time.Hour},
		{"sctp keeps its port", sctp, "203.0.113.7:8080", time.Hour},
	} {
		r := h.pcp(tt.edit)
		want(t, r, pcp.Success, tt.lifetime)
		if got := netip.AddrPortFrom(r.External, r.ExternalPort).String(); got != tt.external || r.Nonce != ours {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.external)
		}
	}
	before := len(gw.Table())
	for name, edit := range map[string]func(*pcp.MapRequest){
		"another's port": func(m *pcp.MapRequest) {
			m.InternalPort, m.ExternalPort, m.Options.PreferFailure = 90, 81, true
		},
		"another address": func(m *pcp.MapRequest) {
			m.InternalPort, m.ExternalPort, m.External, m.Options.PreferFailure = 90, 90, netip.MustParseAddr("192.0.2.1"), true
		},
		"another port than assigned": func(m *pcp.MapRequest) { m.ExternalPort, m.Options.PreferFailure = 90, true },
		"the gateway's port": func(m *pcp.MapRequest) {
			m.Protocol, m.InternalPort, m.ExternalPort, m.Options.PreferFailure = backends.UDP, 90, 5351, true
		},
		"sctp": func(m *pcp.MapRequest) { sctp(m); m.InternalPort, m.Options.PreferFailure = 90, true },
	} {
		if r := h.pcp(edit); r.Result != pcp.CannotProvideExternal || r.Lifetime == 0 || !r.Options.PreferFailure {
			t.Errorf("prefer failure, %s: %+v", name, r)
		}
	}
	if n := len(gw.Table()); n != before {
		t.Errorf("errors changed the table: %d entries, had %d", n, before)
	}
	for _, e := range gw.Table() {
		if e.Service != "pcp" && e.Service != "admin" {
			t.Errorf("made by %q", e.Service)
		}
	}
}

func TestPCPStatic(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080"), External: outside(80), Static: true,
	}); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, gw)
	r := h.pcp(nil)
	want(t, r, pcp.Success, backends.Forever)
	if r.ExternalPort != 80 {
		t.Errorf("port %d, want the static 80", r.ExternalPort)
	}
	want(t, h.pcp(unmap), pcp.NotAuthorized, 30*time.Minute)
}

func TestPCPDescription(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	for _, tt := range []struct{ set, want string }{{"chess", "chess"}, {"", "chess"}, {"go", "go"}, {"clear", ""}} {
		r := h.pcp(func(m *pcp.MapRequest) {
			m.Options.Description, m.Options.ClearDescription = tt.set, tt.set == "clear"
			if m.Options.ClearDescription {
				m.Options.Description = ""
			}
		})
		if got := only(t, gw).Description; got != tt.want || (tt.set == "clear") != r.Options.ClearDescription {
			t.Errorf("after %q: %q, want %q; options %+v", tt.set, got, tt.want, r.Options)
		}
	}
}

// One table for both: NAT-PMP and PCP see each other's entries.
func TestPCPBesideNATPMP(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	h.expect("0002 0000 0051 1f90 00001c20", "0082 0000 000004d2 0051 1f90 00001c20")
	if r := h.pcp(nil); r.ExternalPort != 8081 {
		t.Errorf("port %d, want 8081: NAT-PMP has 8080", r.ExternalPort)
	}
	// NAT-PMP gets PCP's port, prolongs it, and cannot take it away.
	h.expect("0002 0000 1f90 0000 00000001", "0082 0000 000004d2 1f90 1f91 00000001")
	gw.Advance(time.Hour)
	h.expect("0002 0000 1f90 0000 00000000", "0082 0002 000012e2 1f90 0000 00000000")
	want(t, h.pcp(func(m *pcp.MapRequest) { m.Nonce = theirs }), pcp.NotAuthorized, time.Hour)
	h.expect("0002 0000 1f90 0000 00001c20", "0082 0000 000012e2 1f90 1f91 00001c20")
	want(t, h.pcp(func(m *pcp.MapRequest) { m.Nonce = theirs }), pcp.NotAuthorized, 2*time.Hour)
	h.expect("0002 0000 0000 0000 00000000", "0082 0002 000012e2 0000 0000 00000000")
	if e := only(t, gw); e.Service != "pcp" {
		t.Errorf("left: %v", e)
	}
	want(t, h.pcp(unmap), pcp.Success, 0)
	// What has no nonce is its host's: PCP takes it over.
	h.expect(mapTCP, "0082 0000 000012e2 1f90 1f90 00001c20")
	want(t, h.pcp(nil), pcp.Success, 2*time.Hour)
	want(t, h.pcp(func(m *pcp.MapRequest) { m.Nonce = theirs; unmap(m) }), pcp.NotAuthorized, 2*time.Hour)
}

func TestPCPFaultsAndRequests(t *testing.T) {
	t.Parallel()
	gw := reference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	remove := gw.Inject(gatewaytest.Fault{Match: isMap, Result: int(pcp.UserExceededQuota)})
	want(t, h.pcp(nil), pcp.UserExceededQuota, 30*time.Second)
	remove()
	h.pcp(nil)
	h.pcp(unmap)
	h.ask("02000000 00000000 00000000 00000000 0000ffff 7f000001")
	h.ask("02020000 00000258 00000000 00000000 0000ffff 7f000001 10111213 14151617 18191a1b 11000000 9c400000 " +
		"00000000 00000000 0000ffff 00000000 0d960000 00000000 00000000 0000ffff c6336409")
	h.ask("02090000 00000000 00000000 00000000 0000ffff 7f000001")
	var names []string
	for _, q := range gw.Requests() {
		names = append(names, q.Name())
	}
	want := "pcp map tcp|pcp map tcp|pcp unmap tcp|pcp announce|pcp peer udp|pcp other"
	if got := strings.Join(names, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
