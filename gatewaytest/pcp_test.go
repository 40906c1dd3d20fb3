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
	nonceA, nonceB = pcp.Nonce{1, 2, 3}, pcp.Nonce{9, 8, 7}
	clearFilters   pcp.Filter // a filter without a prefix deletes all filters
)

// client returns the address of the host.
func (h host) client() netip.Addr { return h.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap() }

// pcp requests a mapping of TCP port 8080 to 8080 with nonceA for two hours, as changed
// by edit.
func (h host) pcp(edit func(*pcp.MapRequest)) pcp.MapResponse {
	h.t.Helper()
	m := pcp.MapRequest{
		Client: h.client(), Lifetime: 2 * time.Hour, Nonce: nonceA, Protocol: backends.TCP,
		InternalPort: 8080, ExternalPort: 8080,
	}
	if edit != nil {
		edit(&m)
	}
	return h.roundTrip(m)
}

// roundTrip sends a MAP request and returns the response.
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

// response parses the next packet as a MAP response.
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

// unmap changes the request of pcp to the deletion of that mapping.
func unmap(m *pcp.MapRequest) { m.Lifetime, m.ExternalPort = 0, 0 }

// checkResult checks the result and the lifetime of a response.
func checkResult(t *testing.T, r pcp.MapResponse, result pcp.ResultCode, lifetime time.Duration) {
	t.Helper()
	if r.Result != result || r.Lifetime != lifetime {
		t.Errorf("%v for %v, want %v for %v", r.Result, r.Lifetime, result, lifetime)
	}
}

func TestPCPNonce(t *testing.T) {
	t.Parallel()
	withNonceB := func(m *pcp.MapRequest) { m.Nonce = nonceB }
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	checkResult(t, h.pcp(nil), pcp.Success, 2*time.Hour)
	gw.Advance(time.Hour)
	checkResult(t, h.pcp(withNonceB), pcp.NotAuthorized, time.Hour)
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { withNonceB(m); unmap(m) }), pcp.NotAuthorized, time.Hour)
	if got := onlyEntry(t, gw).Remaining; got != time.Hour {
		t.Errorf("after a refused renewal: remaining %v", got)
	}
	checkResult(t, h.pcp(nil), pcp.Success, 2*time.Hour)
	checkResult(t, h.pcp(unmap), pcp.Success, 0)
	checkResult(t, h.pcp(withNonceB), pcp.Success, 2*time.Hour)

	gw = startReference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{NonceLoose: true}}})
	h = newHost(t, gw)
	checkResult(t, h.pcp(nil), pcp.Success, 2*time.Hour)
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { withNonceB(m); unmap(m) }), pcp.NotAuthorized, 2*time.Hour)
	checkResult(t, h.pcp(withNonceB), pcp.Success, 2*time.Hour)
	checkResult(t, h.pcp(unmap), pcp.NotAuthorized, 2*time.Hour) // the mapping now has nonceB
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { withNonceB(m); unmap(m) }), pcp.Success, 0)
}

func TestPCPTable(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{MinLifetime: 2 * time.Minute, MaxLifetime: time.Hour})
	if err := gw.AddMapping(otherHostEntry(backends.TCP, 81)); err != nil {
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
		{"port free", nil, "203.0.113.7:8080", time.Hour},
		{"port already assigned", func(m *pcp.MapRequest) { m.ExternalPort = 9 }, "203.0.113.7:8080", time.Hour},
		{"lifetime too short", func(m *pcp.MapRequest) { m.Lifetime = time.Second }, "203.0.113.7:8080", 2 * time.Minute},
		{"port taken by the same host", func(m *pcp.MapRequest) { m.InternalPort = 1 }, "203.0.113.7:8081", time.Hour},
		{"port taken by another host", func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 2, 81 }, "203.0.113.7:82", time.Hour},
		{"no port requested", func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 3, 0 }, "203.0.113.7:3", time.Hour},
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
		checkResult(t, r, pcp.Success, tt.lifetime)
		if got := netip.AddrPortFrom(r.External, r.ExternalPort).String(); got != tt.external || r.Nonce != nonceA {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.external)
		}
	}
	before := len(gw.Table())
	for name, edit := range map[string]func(*pcp.MapRequest){
		"port of another host": func(m *pcp.MapRequest) {
			m.InternalPort, m.ExternalPort, m.Options.PreferFailure = 90, 81, true
		},
		"another address": func(m *pcp.MapRequest) {
			m.InternalPort, m.ExternalPort, m.External, m.Options.PreferFailure = 90, 90, netip.MustParseAddr("192.0.2.1"), true
		},
		"port other than the assigned one": func(m *pcp.MapRequest) { m.ExternalPort, m.Options.PreferFailure = 90, true },
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
		t.Errorf("errors changed the table: %d entries, want %d", n, before)
	}
	for _, e := range gw.Table() {
		if e.Service != "pcp" && e.Service != "admin" {
			t.Errorf("created by %q", e.Service)
		}
	}
}

func TestPCPStatic(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	if err := gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, Internal: netip.MustParseAddrPort("127.0.0.1:8080"), External: externalPort(80), Static: true,
	}); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, gw)
	r := h.pcp(nil)
	checkResult(t, r, pcp.Success, backends.Forever)
	if r.ExternalPort != 80 {
		t.Errorf("port %d, want the static 80", r.ExternalPort)
	}
	checkResult(t, h.pcp(unmap), pcp.NotAuthorized, 30*time.Minute)
}

func TestPCPDescription(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{})
	h := newHost(t, gw)
	for _, tt := range []struct{ set, want string }{{"chess", "chess"}, {"", "chess"}, {"go", "go"}, {"clear", ""}} {
		r := h.pcp(func(m *pcp.MapRequest) {
			m.Options.Description, m.Options.ClearDescription = tt.set, tt.set == "clear"
			if m.Options.ClearDescription {
				m.Options.Description = ""
			}
		})
		if got := onlyEntry(t, gw).Description; got != tt.want || (tt.set == "clear") != r.Options.ClearDescription {
			t.Errorf("after %q: %q, want %q; options %+v", tt.set, got, tt.want, r.Options)
		}
	}
}

func TestPCPQuirks(t *testing.T) {
	t.Parallel()
	type config = gatewaytest.Config
	private := netip.MustParseAddr("100.64.0.2")
	for name, tt := range map[string]struct {
		config   config
		edit     func(*pcp.MapRequest)
		result   pcp.ResultCode
		lifetime time.Duration
		external string
	}{
		"private":         {config{External: private}, nil, pcp.Success, 2 * time.Hour, "100.64.0.2:8080"},
		"private refused": {config{External: private, Quirks: quirks.Quirks{PCP: quirks.PCP{RefusePrivate: true}}}, nil, pcp.NoResources, 30 * time.Second, "100.64.0.2:8080"},
		"private refused, delete": {
			config{External: private, Quirks: quirks.Quirks{PCP: quirks.PCP{RefusePrivate: true}}}, unmap, pcp.Success, 0, "0.0.0.0:0",
		},
		"delete unknown mapping": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{DeleteUnknownNoResources: true}}}, unmap, pcp.NoResources, 30 * time.Second, "0.0.0.0:0"},
		"error lifetime zero": {
			config{Quirks: quirks.Quirks{PCP: quirks.PCP{ErrorLifetimeZero: true, NAT: true}}}, nil, pcp.AddressMismatch, 0, "0.0.0.0:8080",
		},
		"error lifetime zero, short lifetime": {
			config{External: netip.IPv4Unspecified(), Quirks: quirks.Quirks{PCP: quirks.PCP{ErrorLifetimeZero: true}}},
			nil,
			pcp.NetworkFailure, 30 * time.Second, "0.0.0.0:8080",
		},
		"prefer failure ignored": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{PreferFailureIgnored: true}}}, func(m *pcp.MapRequest) {
			m.ExternalPort, m.Options.PreferFailure = 9, true
		}, pcp.Success, 2 * time.Hour, "203.0.113.7:10"},
		"all ports refused": {config{}, func(m *pcp.MapRequest) {
			m.InternalPort = 0
		}, pcp.UnsupportedProtocol, 30 * time.Minute, "0.0.0.0:8080"},
		"all ports malformed": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{WildcardMalformed: true}}}, func(m *pcp.MapRequest) {
			m.InternalPort = 0
		}, pcp.MalformedRequest, 30 * time.Minute, "0.0.0.0:8080"},
		"too many filters": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{MaxFilters: 1}}}, func(m *pcp.MapRequest) {
			m.Options.Filters = []pcp.Filter{clearFilters, {Prefix: netip.MustParsePrefix("192.0.2.0/24")}, {Prefix: netip.MustParsePrefix("192.0.3.0/24")}}
		}, pcp.ExcessiveRemotePeers, 30 * time.Minute, "0.0.0.0:8080"},
		"one filter": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{MaxFilters: 1}}}, func(m *pcp.MapRequest) {
			m.Options.Filters = []pcp.Filter{{Prefix: netip.MustParsePrefix("192.0.3.0/24")}, clearFilters, {Prefix: netip.MustParsePrefix("192.0.2.0/24")}}
		}, pcp.Success, 2 * time.Hour, "203.0.113.7:8080"},
		"third party unspecified": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{ThirdParty: true}}}, func(m *pcp.MapRequest) {
			m.Options.ThirdParty = netip.IPv4Unspecified()
		}, pcp.MalformedRequest, 30 * time.Minute, "0.0.0.0:8080"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gw := startReference(t, tt.config)
			if tt.config.Quirks.PCP.PreferFailureIgnored {
				if err := gw.AddMapping(otherHostEntry(backends.TCP, 9)); err != nil {
					t.Fatal(err)
				}
			}
			r := newHost(t, gw).pcp(tt.edit)
			checkResult(t, r, tt.result, tt.lifetime)
			if got := netip.AddrPortFrom(r.External, r.ExternalPort).String(); got != tt.external {
				t.Errorf("external %s, want %s", got, tt.external)
			}
			if r.Result == pcp.Success && r.Options.PreferFailure {
				t.Error("the response has the PREFER_FAILURE option")
			}
		})
	}
}

func TestPCPOptionsEchoed(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{OptionsEchoed: true}}})
	const unknown = "c8000001 ff000000" // option 200
	h := newHost(t, gw)
	h.expect("02010000 00000e10 00000000 00000000 0000ffff 7f000001 10111213 14151617 18191a1b 06000000 00500000 "+
		"00000000 00000000 0000ffff 00000000"+unknown,
		"02810000 00000e10 000004d2 00000000 00000000 00000000 10111213 14151617 18191a1b 06000000 00500050 "+
			"00000000 00000000 0000ffff cb007107"+unknown)
}

func TestPCPAnnounceQuirks(t *testing.T) {
	t.Parallel()
	const request = "02000000 00000000 00000000 00000000 0000ffff 7f000001"
	for reply, q := range map[string]quirks.PCP{
		"02800000 00000000 000004d2 00000000 00000000 00000000": {},
		"02800004 00000708 000004d2 00000000 0000ffff 7f000001": {AnnounceUnsupported: true},
		"": {NoAnnounce: true},
	} {
		newHost(t, startReference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: q}})).expect(request, reply)
	}
}

// TestVersionNegotiation checks the responses to requests of a version that the gateway
// does not support.
func TestVersionNegotiation(t *testing.T) {
	t.Parallel()
	const pcpMap = "02010000 00001c20 00000000 00000000 0000ffff 7f000001 10111213 14151617 18191a1b " +
		"06000000 00500000 00000000 00000000 0000ffff 00000000"
	pcpMapped := strings.Replace(strings.Replace(pcpMap, "0201", "0281", 1), "00500000", "00500050", 1)
	pcpMapped = strings.Replace(strings.Replace(pcpMapped, "00000000 00000000 0000ffff 7f000001", "000004d2 00000000 00000000 00000000", 1),
		"0000ffff 00000000", "0000ffff cb007107", 1)
	const wrongVersion = "00000708 000004d2 00000000 00000000 00000000"
	type exchange struct{ request, reply string }
	type config = gatewaytest.Config
	noNATPMP, noPCP := []string{"pcp", "upnp"}, []string{"natpmp", "upnp"}
	for name, tt := range map[string]struct {
		config    config
		exchanges []exchange
	}{
		"both": {config{}, []exchange{{"0000", addrReply}, {mapTCP, mapTCPReply}, {pcpMap, pcpMapped}, {"0300", "02800001" + wrongVersion}}},
		"pcp only": {config{Protocols: noNATPMP}, []exchange{
			{"0000", "02800001" + wrongVersion}, {mapTCP, "02820001" + wrongVersion}, {pcpMap, pcpMapped},
		}},
		"pcp only, quirk": {config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnly: true}}}, []exchange{
			{"0000", "02800001" + wrongVersion}, {pcpMap, pcpMapped},
		}},
		"pcp only, truncated": {config{Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{PCPOnlyTruncated: true}}}, []exchange{
			{"0000", "0280"}, {mapTCP, "02820002 00000708 000004d2"}, {pcpMap, pcpMapped},
		}},
		"nat-pmp only":                 {config{Protocols: noPCP}, []exchange{{pcpMap, "00000001 000004d2"}, {"0000", addrReply}}},
		"nat-pmp only, request opcode": {config{Protocols: noPCP, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VersionError: quirks.VersionErrorOpcode}}}, []exchange{{pcpMap, "00810001 000004d2"}}},
		"nat-pmp only, silent":         {config{Protocols: noPCP, Quirks: quirks.Quirks{NATPMP: quirks.NATPMP{VersionError: quirks.VersionErrorSilent}}}, []exchange{{pcpMap, ""}}},
		"version of the draft": {config{Quirks: quirks.Quirks{PCP: quirks.PCP{VersionOne: true}}}, []exchange{
			{pcpMap, strings.Replace(pcpMap, "02010000 00001c20 00000000", "01810001 00000708 000004d2", 1)},
			{"0000", addrReply},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, startReference(t, tt.config))
			for _, x := range tt.exchanges {
				h.expect(x.request, x.reply)
			}
		})
	}
}

// peer sends a PEER request, as changed by edit, and returns the response.
func peer(h host, edit func(*pcp.PeerRequest)) pcp.PeerResponse {
	h.t.Helper()
	m := pcp.PeerRequest{
		Client: h.client(), Lifetime: time.Hour, Nonce: nonceA, Protocol: backends.TCP, InternalPort: 8080,
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
	gw := startGateway(t, gatewaytest.Config{ManualClock: true})
	h := newHost(t, gw)
	port := serveEcho(t, "tcp4", "127.0.0.1:0")
	first := func(m *pcp.PeerRequest) { m.InternalPort, m.ExternalPort = port, 8080 }
	second := func(m *pcp.PeerRequest) {
		m.InternalPort, m.Nonce, m.Remote = port, nonceB, netip.MustParseAddrPort("45.45.46.3:7000")
		m.Lifetime = 2 * time.Hour
	}
	check := func(fromFirst, fromSecond, fromOtherPort bool) {
		t.Helper()
		checkReach(t, gw, "45.45.45.9:7000", "45.45.45.1:8080", fromFirst)
		checkReach(t, gw, "45.45.46.3:7000", "45.45.45.1:8080", fromSecond)
		checkReach(t, gw, "45.45.45.9:7001", "45.45.45.1:8080", fromOtherPort)
	}
	if r := peer(h, first); r.Result != pcp.Success || r.ExternalPort != 8080 || r.External != gw.External() || r.Lifetime != time.Hour {
		t.Errorf("first PEER: %+v", r)
	}
	check(true, false, false)
	if r := peer(h, second); r.Result != pcp.Success || r.ExternalPort != 8080 {
		t.Errorf("second PEER, from the same port: %+v", r)
	}
	check(true, true, false)
	if r := peer(h, func(m *pcp.PeerRequest) { second(m); m.ExternalPort = 81 }); r.Result != pcp.CannotProvideExternal {
		t.Errorf("another port: %+v", r)
	}
	if r := peer(h, func(m *pcp.PeerRequest) { second(m); m.Nonce = nonceA }); r.Result != pcp.NotAuthorized || r.Lifetime != 2*time.Hour {
		t.Errorf("another nonce: %+v", r)
	}
	if r := peer(h, func(m *pcp.PeerRequest) { first(m); m.Lifetime = 0 }); r.Result != pcp.Success || r.Lifetime != time.Hour {
		t.Errorf("deleting: %+v", r)
	}
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); m.InternalPort = port }), pcp.NotAuthorized, 30*time.Minute)
	gw.Advance(90 * time.Minute)
	check(false, true, false)

	// A mapping gets the same external port as the PEER entries, and can be deleted
	// without them.
	r := h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = port, 90 })
	if r.ExternalPort != 8080 {
		t.Errorf("port %d, want the same 8080", r.ExternalPort)
	}
	check(true, true, true)
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); m.InternalPort = port }), pcp.Success, 0)
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
	noPeer := newHost(t, startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{NoPeer: true}}}))
	if r := peer(noPeer, first); r.Result != pcp.UnsupportedOpcode {
		t.Errorf("PEER not supported: %+v", r)
	}
}

func TestPCPFilters(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{})
	h := newHost(t, gw)
	port := serveEcho(t, "tcp4", "127.0.0.1:0")
	filter := func(filters ...pcp.Filter) pcp.MapResponse {
		return h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.Options.Filters = port, filters })
	}
	check := func(first, second bool) {
		t.Helper()
		checkReach(t, gw, "45.45.45.9:7000", "45.45.45.1:8080", first)
		checkReach(t, gw, "45.45.46.3:7000", "45.45.45.1:8080", second)
	}
	filter()
	check(true, true)
	one, other := pcp.Filter{Prefix: netip.MustParsePrefix("45.45.45.8/31")}, pcp.Filter{Prefix: netip.MustParsePrefix("45.45.46.0/24"), Port: 7000}
	if r := filter(one); len(r.Options.Filters) != 1 || r.Options.Filters[0] != one {
		t.Errorf("options %+v", r.Options)
	}
	check(true, false)
	filter() // without a filter option, the filters do not change
	check(true, false)
	filter(other) // adds a filter
	check(true, true)
	checkReach(t, gw, "45.45.46.3:7001", "45.45.45.1:8080", false)
	filter(clearFilters, other) // replaces all filters
	check(false, true)
	filter(clearFilters)
	check(true, true)

	ignoring := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{FilterIgnored: true}}})
	gw, h = ignoring, newHost(t, ignoring)
	filter(one)
	check(true, true)
}

func TestPCPAllPorts(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{AllPorts: true, ThirdParty: true}}})
	h := newHost(t, gw)
	port := serveEcho(t, "tcp4", "127.0.0.1:0")
	to := netip.AddrPortFrom(gw.External(), port).String()
	allPorts := func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 0, 0 }
	allProtocols := func(m *pcp.MapRequest) { allPorts(m); m.Protocol = 0 }
	otherHostEdit := func(m *pcp.MapRequest) { m.Options.ThirdParty = otherHost.Addr() }

	for _, edit := range []func(*pcp.MapRequest){allPorts, allProtocols} {
		checkReach(t, gw, "45.45.45.9:1", to, false)
		r := h.pcp(edit)
		checkResult(t, r, pcp.Success, 2*time.Hour)
		if r.External != gw.External() || r.ExternalPort != 0 {
			t.Errorf("response %+v", r)
		}
		checkReach(t, gw, "45.45.45.9:1", to, true)
		checkResult(t, h.pcp(func(m *pcp.MapRequest) { edit(m); otherHostEdit(m) }), pcp.UnsupportedProtocol, 30*time.Minute)
		checkResult(t, h.pcp(otherHostEdit), pcp.NoResources, 30*time.Second) // no port is left for other hosts
		checkResult(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); m.InternalPort = port }), pcp.Success, 0)
		checkReach(t, gw, "45.45.45.9:1", to, true) // the deleted port is not the entry for all ports
		checkResult(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); edit(m) }), pcp.Success, 0)
	}
	checkReach(t, gw, "45.45.45.9:1", to, false)
	// The filter of a port takes precedence over the entry for all ports.
	h.pcp(allPorts)
	h.pcp(func(m *pcp.MapRequest) {
		m.InternalPort, m.ExternalPort = port, port
		m.Options.Filters = []pcp.Filter{{Prefix: netip.MustParsePrefix("45.45.46.0/24")}}
	})
	checkReach(t, gw, "45.45.45.9:1", to, false)
	checkReach(t, gw, "45.45.46.9:1", to, true)
}

func TestPCPThirdParty(t *testing.T) {
	t.Parallel()
	gw := startGateway(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{ThirdParty: true}}})
	h := newHost(t, gw)
	r := h.pcp(func(m *pcp.MapRequest) { m.Options.ThirdParty = otherHost.Addr() })
	checkResult(t, r, pcp.Success, 2*time.Hour)
	if e := onlyEntry(t, gw); e.Internal.String() != "127.0.0.99:8080" || r.Options.ThirdParty != otherHost.Addr() {
		t.Errorf("entry %v, options %+v", e, r.Options)
	}
	checkResult(t, h.pcp(unmap), pcp.Success, 0) // the client itself has no such mapping
	onlyEntry(t, gw)
	checkResult(t, h.pcp(func(m *pcp.MapRequest) { unmap(m); m.Options.ThirdParty = otherHost.Addr() }), pcp.Success, 0)
	if all := gw.Table(); len(all) != 0 {
		t.Errorf("remaining entries: %v", all)
	}
}

const (
	mapUDPforPCP = "02010000 00000bb8 00000000 00000000 0000ffff 7f000001 10111213 14151617 18191a1b 11000000 1ae11af4 " +
		"00000000 00000000 0000ffff 00000000"
	// mappingUpdate follows the diagram of RFC 6887.
	mappingUpdate = "02810000" + "00000bb8" + "00000028" + "000000000000000000000000" + "101112131415161718191a1b" +
		"11000000" + "1ae11af4" + "00000000000000000000ffffcb007163"
)

func TestMappingUpdates(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{MappingUpdates: true}}})
	h := newHost(t, gw)
	h.request(mapUDPforPCP)
	gw.Restart(gatewaytest.RestartOptions{KeepTable: true, Silent: true})
	gw.Advance(40 * time.Second)
	h.request(mapUDPforPCP)
	gw.SetExternal(netip.MustParseAddr("203.0.113.99"))
	for range 3 { // immediately, after 250 ms, and after another 500 ms
		if got := h.receive(); got != mappingUpdate {
			t.Errorf("got  %s\nwant %s", got, mappingUpdate)
		}
	}
	if n := gw.Stats().MappingUpdates; n != 3 {
		t.Errorf("%d updates counted, want 3", n)
	}
}

func TestMappingUpdateOnce(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{UpdateCount: 1, ThirdParty: true}}})
	h := newHost(t, gw)
	gw.UpdateMappings() // there are no clients yet
	h.request(mapTCP)   // NAT-PMP has no mapping updates
	h.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort, m.Options.PreferFailure = 90, 90, true })
	h.pcp(func(m *pcp.MapRequest) { m.Options.ThirdParty, m.ExternalPort = otherHost.Addr(), 91 })
	otherClient := newHost(t, gw)
	otherClient.pcp(func(m *pcp.MapRequest) { m.InternalPort, m.ExternalPort = 92, 92 })
	gw.SetExternal(netip.MustParseAddr("203.0.113.99"))
	gw.UpdateMappings()
	lost := h.response()
	checkResult(t, lost, pcp.CannotProvideExternal, 30*time.Minute)
	if lost.InternalPort != 90 || lost.Nonce != nonceA {
		t.Errorf("update for the lost mapping: %+v", lost)
	}
	moved := h.response()
	checkResult(t, moved, pcp.Success, 2*time.Hour)
	if moved.Options.ThirdParty != otherHost.Addr() || moved.External.String() != "203.0.113.99" || moved.ExternalPort != 91 {
		t.Errorf("update for the moved mapping: %+v", moved)
	}
	if r := otherClient.response(); r.InternalPort != 92 || r.External.String() != "203.0.113.99" {
		t.Errorf("update for the other client: %+v", r)
	}
	if n := len(gw.Table()); n != 3 {
		t.Errorf("%d entries, want all except the lost one: %v", n, gw.Table())
	}

	gw.SetExternal(netip.IPv4Unspecified())
	gw.UpdateMappings()
	checkResult(t, otherClient.response(), pcp.NetworkFailure, 30*time.Second)
	gw.Down()
	gw.UpdateMappings()
	if n := gw.Stats().MappingUpdates; n != 5 {
		t.Errorf("%d updates counted, want 5", n)
	}
}

func TestPeerUpdate(t *testing.T) {
	t.Parallel()
	gw := startReference(t, gatewaytest.Config{Quirks: quirks.Quirks{PCP: quirks.PCP{UpdateCount: 1, MappingUpdates: true}}})
	h := newHost(t, gw)
	peer(h, func(m *pcp.PeerRequest) {})
	gw.SetExternal(netip.MustParseAddr("203.0.113.99"))
	const prefix = "02820000" + "00000e10" + "000004d2"
	if got := h.receive(); len(got) != 160 || got[:24] != prefix || got[112:120] != "cb007163" {
		t.Errorf("got %s", got)
	}
}
