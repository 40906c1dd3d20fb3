package labtest

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/lab"
)

// addrPort returns a port of the host's address.
func addrPort(h *lab.Host, port uint16) netip.AddrPort { return netip.AddrPortFrom(h.Addr(), port) }

// joinWan adds another host outside, in the router's external network.
func joinWan(t *testing.T, home *lab.HomeNet) *lab.Host {
	t.Helper()
	return home.JoinOutside("second", "45.45.45.3/24")
}

// packetCounter is a rule of a host that counts packets.
type packetCounter struct {
	host *lab.Host
	name string
}

// countPackets adds a rule that counts the packets that match.
func countPackets(t *testing.T, host *lab.Host, hook, name, packets string) packetCounter {
	t.Helper()
	host.Rule(t, hook, packets+` counter comment "`+name+`"`)
	return packetCounter{host, name}
}

// packets returns how many packets the rule has counted.
func (c packetCounter) packets(t *testing.T) int {
	t.Helper()
	m := regexp.MustCompile(`counter packets (\d+) bytes \d+ comment "` + c.name + `"`).FindStringSubmatch(c.host.Ruleset(t))
	if m == nil {
		t.Fatalf("no rule counts %s", c.name)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// preferenceDelay is how long the client waits at least for the preferred protocol before it
// uses another protocol that has already replied.
const preferenceDelay = 10 * time.Millisecond

// TestChoice checks which protocol is used: NAT-PMP, if the router supports it and the
// caller prefers no other.
func TestChoice(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		router lab.Router
		order  []string
		want   string
	}{
		"NAT-PMP only":        {lab.Router{NoPCP: true}, nil, "natpmp"},
		"PCP only":            {lab.Router{NoNATPMP: true}, nil, "pcp"},
		"both":                {lab.Router{}, nil, "natpmp"},
		"both, PCP preferred": {lab.Router{}, []string{"pcp", "natpmp"}, "pcp"},
		"both, PCP wanted":    {lab.Router{}, []string{"pcp"}, "pcp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "choice: the router speaks "+name)
			home := lab.Home(t, c.router)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			slow := false // the preferred protocol can reply late; another one is then used, and remembered
			for range 3 { // each Forwarder probes again
				f := newForwarder(t, home.Lan, config{Protocols: c.order})
				got := f.do(call{Op: "enable", Options: []option{tcp(8080)}})
				m, _ := f.toMapping(got)
				t.Logf("granted by %s after %v", m.Backend, got.Took)
				if slow = slow || got.Took >= preferenceDelay; m.Backend != c.want && !slow {
					t.Errorf("granted by %q, want %q", m.Backend, c.want)
				}
				if got.Took > 2*time.Second {
					t.Errorf("granted after %v", got.Took)
				}
				home.Reaches(t, echo, m.External)
				f.close()
				wantRules(t, home, 0)
			}
		})
	}
}

// TestChoiceLoss checks a link that loses every third request and every third response.
// Loss may decide which protocol a Forwarder uses, but the Forwarder must not switch from
// one to the other.
func TestChoiceLoss(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "choice: over a link that loses packets, one owner")
	home := lab.Home(t, lab.Router{})
	home.Router.Rule(t, "input", `iifname "lan0" udp dport 5351 numgen inc mod 3 == 0 drop`)
	home.Router.Rule(t, "output", `oifname "lan0" udp sport 5351 numgen inc mod 3 == 0 drop`)
	f := newForwarder(t, home.Lan, config{})
	var all []*mapping
	for port := range uint16(3) {
		all = append(all, f.enable(both(8080+port)))
	}
	for _, m := range all {
		m.refresh()
	}
	for _, m := range all {
		if m.Backend != all[0].Backend {
			t.Errorf("granted by %s, want %s as before", m.Backend, all[0].Backend)
		}
		home.Reaches(t, home.Lan.Echo(t, "tcp", m.Internal.String()), m.External)
		home.Reaches(t, home.Lan.Echo(t, "udp", m.Internal.String()), m.External)
	}
	t.Logf("backend: %s", all[0].Backend)
	for _, m := range all {
		m.close()
	}
	wantRules(t, home, 0)
}

// TestChoicePartialSupport checks a router that replies to the probes of NAT-PMP and PCP, but
// creates mappings by only one of them.
func TestChoicePartialSupport(t *testing.T) {
	t.Parallel()
	const natpmpMap = `iifname "lan0" udp dport 5351 @th,64,8 0 @th,72,8 { 1, 2 } `
	const pcpMap = `iifname "lan0" udp dport 5351 @th,64,16 0x0201 `
	for name, c := range map[string]struct{ rule, want string }{
		"NAT-PMP requests are refused": {natpmpMap + "reject", "pcp"},
		"NAT-PMP requests are lost":    {natpmpMap + "drop", "pcp"},
		"PCP requests are lost":        {pcpMap + "drop", "natpmp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "choice: "+name)
			home := lab.Home(t, lab.Router{})
			home.Router.Rule(t, "input", c.rule)
			echo := home.Lan.Echo(t, "tcp", ":8080")
			f := newForwarder(t, home.Lan, config{})
			got := f.try(call{Op: "enable", Options: []option{tcp(8080)}})
			t.Logf("Enable returned after %v", got.Took)
			m, err := f.toMapping(got)
			if err != nil {
				t.Fatal(err)
			}
			if m.Backend != c.want {
				t.Errorf("granted by %q, want %q", m.Backend, c.want)
			}
			home.Reaches(t, echo, m.External)
			f.close()
			wantRules(t, home, 0)
		})
	}
}

// TestSecondRouter checks that requests are sent only to the router of the default route.
func TestSecondRouter(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "choice: two routers on one network")
	home := lab.Home(t, lab.Router{})
	other := home.SecondRouter(t, lab.Router{WAN: netip.MustParsePrefix("46.46.46.1/24")})
	first := countPackets(t, home.Router, "input", "requests", `iifname "lan0" udp dport 5351`)
	second := countPackets(t, other.Router, "input", "requests", `iifname "lan0" udp dport 5351`)
	echo := home.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(tcp(8080))
	if m.Gateway.Addr() != home.Gateway || m.External != externalAddr(home, 8080) {
		t.Errorf("%+v", m.state)
	}
	home.Reaches(t, echo, m.External)
	other.DoesNotReach(t, echo, externalAddr(other, 8080))
	wantRules(t, other, 0)
	if n := second.packets(t); n != 0 {
		t.Errorf("the other router received %d requests", n)
	}

	// The first mapping is closed before the default route changes, because a mapping
	// belongs to the router that granted it.
	f.disable()
	wantRules(t, home, 0)
	before := first.packets(t)
	home.Lan.Exec(t, "ip", "route", "replace", "default", "via", other.Gateway.String())
	m = f.enable(tcp(8080))
	if m.Gateway.Addr() != other.Gateway || m.External != externalAddr(other, 8080) {
		t.Errorf("%+v", m.state)
	}
	other.Reaches(t, echo, m.External)
	home.DoesNotReach(t, echo, externalAddr(home, 8080))
	if n := first.packets(t); n != before {
		t.Errorf("the first router received %d more requests", n-before)
	}
	f.disable()
	wantRules(t, other, 0)
	wantRules(t, home, 0)
}

// TestSecondRouterDisable checks a mapping that was enabled before the default route changed. It
// follows the route when another call notices the change, and all mappings are deleted in
// the end.
func TestSecondRouterDisable(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "choice: two routers on one network, disabled after the route has moved")
	home := lab.Home(t, lab.Router{})
	other := home.SecondRouter(t, lab.Router{WAN: netip.MustParsePrefix("46.46.46.1/24")})
	echo := home.Lan.Echo(t, "udp", ":8080")
	f := newForwarder(t, home.Lan, config{})
	m := f.enable(udp(8080))
	home.Reaches(t, echo, m.External)
	home.Lan.Exec(t, "ip", "route", "replace", "default", "via", other.Gateway.String())
	second := f.enable(udp(8081))
	if second.Gateway.Addr() != other.Gateway {
		t.Errorf("%+v", second.state)
	}
	waitUntil(t, maxWait, "the first mapping does not follow", func() bool {
		return len(home.Rules(t)) == 0 && len(other.Rules(t)) == 2
	})
	f.disableAll()
	wantRules(t, home, 0)
	wantRules(t, other, 0)
}

// TestDirect checks a host with a public address, which needs no gateway.
func TestDirect(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "choice: a host with a public address")
	home := lab.Home(t, lab.Router{})
	home.Wan.Exec(t, "ip", "route", "add", "default", "via", home.External.String())
	// The second byte is not 0 in a request that maps a port; in a probe it is 0.
	maps := countPackets(t, home.Router, "input", "maps", `iifname "wan0" udp dport 5351 @th,72,8 != 0`)
	probes := countPackets(t, home.Router, "input", "probes", `iifname "wan0" udp dport 5351 @th,72,8 0`)
	echo := home.Wan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, home.Wan, config{})
	got := f.do(call{Op: "enable", Options: []option{tcp(8080)}})
	m, _ := f.toMapping(got)
	t.Logf("%s after %v", m.Backend, got.Took)
	if m.Backend != "direct" || m.External != m.Internal || m.External != addrPort(home.Wan, 8080) || m.Scope != "public" {
		t.Errorf("%+v", m.state)
	}
	if _, err := home.Lan.Reach(echo, m.External); err != nil {
		t.Error(err)
	}
	if addr := f.externalIP(); addr != home.Wan.Addr() {
		t.Errorf("external address %v, want %v", addr, home.Wan.Addr())
	}
	f.disable()
	f.close()
	if n := maps.packets(t); n != 0 {
		t.Errorf("the router received %d map requests", n)
	}
	t.Logf("%d probes", probes.packets(t))
	wantRules(t, home, 0)
}

// TestDoubleNAT checks double NAT. The inner router detects that its external address is
// private.
func TestDoubleNAT(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "choice: two NATs in a row")
	in, out := lab.DoubleNAT(t, lab.Router{}, lab.Router{})
	echo := in.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, in.Lan, config{})
	f.wantEnableError([]error{backends.ErrPrivateWAN}, tcp(8080))
	wantRules(t, in, 0)
	wantRules(t, out, 0)
	in.DoesNotReach(t, echo, externalAddr(in, 8080))
	if peer, err := out.Wan.Reach(echo, externalAddr(out, 8080)); err == nil {
		t.Errorf("bytes arrive from %v", peer)
	}
}

// TestDoubleNATAddressMismatch checks a PCP request to the outer router through the inner one. The
// outer router receives it from an address other than the client address in the request.
func TestDoubleNATAddressMismatch(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "choice: two NATs in a row, the outer one named")
	in, out := lab.DoubleNAT(t, lab.Router{}, pcpOnly)
	f := newForwarder(t, in.Lan, config{Gateway: netip.AddrPortFrom(out.Gateway, 0)})
	took := f.wantEnableError([]error{backends.ErrPrivateWAN}, tcp(8080))
	t.Logf("the error was returned after %v", took)
	wantRules(t, in, 0)
	wantRules(t, out, 0)
}

// TestDoubleNATMappedOnBoth checks that bytes arrive if the inner router is configured with the
// external address of the outer router, and a port is mapped on both routers. NAT-PMP
// requests do not contain the client address, so the outer router maps to the inner one.
//
// It does not run in parallel: on a busy machine, the router can be late with its reply to NAT-PMP,
// and PCP is chosen.
func TestDoubleNATMappedOnBoth(t *testing.T) {
	lab.Scenario(t, "choice: two NATs in a row, mapped on both")
	in, out := lab.DoubleNAT(t, lab.Router{ExtraConf: []string{"ext_ip=45.45.45.1"}}, lab.Router{})
	echo := in.Lan.Echo(t, "tcp", ":8080")
	f := newForwarder(t, in.Lan, config{})
	inner := f.enable(tcp(8080))
	if inner.External != externalAddr(out, 8080) {
		t.Errorf("%+v", inner.state)
	}
	if _, err := out.Wan.Reach(echo, inner.External); err == nil {
		t.Error("bytes arrive through a router without a mapping")
	}
	g := f.forwarder(config{Gateway: netip.AddrPortFrom(out.Gateway, 0)})
	outer := g.enable(tcp(8080))
	if outer.Backend != "natpmp" || outer.External != externalAddr(out, 8080) {
		t.Errorf("%+v", outer.state)
	}
	if _, err := out.Wan.Reach(echo, outer.External); err != nil {
		t.Error(err)
	}
	g.close()
	wantRules(t, out, 0)
	wantRules(t, in, 1)
	f.close()
	wantRules(t, in, 0)
}

// TestNamedGateway checks a wrong address in Config.Gateway. The error reports that the address
// does not reply, and not that there is no gateway.
func TestNamedGateway(t *testing.T) {
	t.Parallel()
	const wait = 1500 * time.Millisecond
	for name, gw := range map[string]struct {
		addr   string
		kinds  []error
		within time.Duration
	}{
		"a host without a daemon":    {"192.168.77.3", []error{backends.ErrNoReply, syscall.ECONNREFUSED}, searchTimeout + tolerance},
		"a host outside":             {"45.45.45.2", []error{backends.ErrNoReply, syscall.ECONNREFUSED}, searchTimeout + tolerance},
		"an address of nobody":       {"192.168.77.99", []error{backends.ErrNoReply}, wait + tolerance},
		"an address that leads away": {"45.45.46.1", []error{backends.ErrNoReply}, wait + tolerance},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the wrong gateway named, "+name)
			home := lab.Home(t, lab.Router{})
			home.Join("printer", "192.168.77.3/24")
			f := newForwarder(t, home.Lan, config{
				Gateway: netip.AddrPortFrom(netip.MustParseAddr(gw.addr), 0), DiscoveryTimeout: wait,
			})
			got := f.try(call{Op: "enable", Options: []option{tcp(8080)}})
			t.Logf("the error was returned after %v", got.Took)
			wantKinds(t, got.Failure.err(), gw.kinds...)
			wantNotKind(t, got.Failure.err(), forward.ErrNoGateway)
			if got.Took > gw.within {
				t.Errorf("the error was returned after %v, want %v", got.Took, gw.within)
			}
			wantRules(t, home, 0)
		})
	}
}

// TestNamedGatewayWithoutRoute checks that the gateway in Config.Gateway is used even if the host has
// no default route.
func TestNamedGatewayWithoutRoute(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: the gateway named, without a default route")
	home := lab.Home(t, lab.Router{})
	home.Lan.Exec(t, "ip", "route", "del", "default")
	home.Lan.Exec(t, "ip", "route", "add", home.Wan.Addr().String(), "via", home.Gateway.String()) // for the replies to the host outside
	f := newForwarder(t, home.Lan, config{Gateway: netip.AddrPortFrom(home.Gateway, 5351)})
	m := f.enable(tcp(8080))
	home.Reaches(t, home.Lan.Echo(t, "tcp", ":8080"), m.External)
	f.close()
	wantRules(t, home, 0)
}

// searchTimeout is when the search for UPnP devices ends without a response, if all other
// protocols have failed.
const searchTimeout = 1300 * time.Millisecond

// TestNoRoute checks that Enable fails at once without a default route.
func TestNoRoute(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: no route, verdict at once")
	home := lab.Home(t, lab.Router{})
	home.Lan.Exec(t, "ip", "route", "del", "default")
	f := newForwarder(t, home.Lan, config{})
	took := f.wantEnableError([]error{forward.ErrNoGateway}, tcp(8080))
	t.Logf("the error was returned after %v", took)
	if took > tolerance {
		t.Errorf("the error was returned after %v", took)
	}
	// The network comes up.
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
	m := f.enable(tcp(8080))
	home.Reaches(t, home.Lan.Echo(t, "tcp", ":8080"), m.External)
}

// TestNoReply checks that Enable fails within the discovery timeout if no protocol
// gets a reply.
func TestNoReply(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: 5351 silent, verdict within Wait")
	const wait = 1200 * time.Millisecond
	home := lab.Home(t, lab.Router{Silent5351: true, NoUPnP: true})
	f := newForwarder(t, home.Lan, config{DiscoveryTimeout: wait})
	took := f.wantEnableError([]error{forward.ErrNoGateway, backends.ErrNoReply}, tcp(8080))
	t.Logf("the error was returned after %v", took)
	if took > wait+tolerance {
		t.Errorf("the error was returned after %v, want %v", took, wait)
	}
}

// TestRefused checks that Enable fails when the search ends, if the ports of NAT-PMP and
// PCP are closed.
func TestRefused(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "forward: 5351 refused, verdict when every device can have answered")
	home := lab.Home(t, lab.Router{Refuse5351: true, NoUPnP: true})
	f := newForwarder(t, home.Lan, config{})
	took := f.wantEnableError([]error{forward.ErrNoGateway, backends.ErrNoReply}, tcp(8080))
	t.Logf("the error was returned after %v", took)
	if took > searchTimeout+tolerance {
		t.Errorf("the error was returned after %v", took)
	}
}

// TestPrivateWAN checks a router behind another NAT. NAT-PMP cannot distinguish a private
// address from no address at all; the PCP of this router reports the address.
func TestPrivateWAN(t *testing.T) {
	t.Parallel()
	for wan, text := range map[string]string{
		"10.66.66.1/24": "behind another router",
		"100.64.0.1/24": "behind the provider's NAT",
	} {
		t.Run(wan, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "forward: the router's own address is "+wan)
			home := lab.Home(t, lab.Router{WAN: netip.MustParsePrefix(wan)})
			natpmp := countPackets(t, home.Router, "input", "natpmp", `iifname "lan0" udp dport 5351 @th,64,8 0 @th,72,8 { 1, 2 }`)
			pcp := countPackets(t, home.Router, "input", "pcp", `iifname "lan0" udp dport 5351 @th,64,16 0x0201`)
			f := newForwarder(t, home.Lan, config{})
			got := f.try(call{Op: "enable", Options: []option{tcp(8080)}})
			t.Logf("the error was returned after %v", got.Took)
			wantKinds(t, got.Failure.err(), backends.ErrPrivateWAN)
			if got.Failure != nil && !strings.Contains(got.Failure.Text, text) {
				t.Errorf("the error does not contain %q", text)
			}
			// None of the eight alternative ports is tried, because the router would
			// refuse each of them. If the machine pauses and a request gets no reply
			// within 250 ms, it is repeated.
			if n := natpmp.packets(t); n < 1 || n > 2 {
				t.Errorf("%d NAT-PMP requests, want one, or one with a repetition", n)
			}
			if n := pcp.packets(t); n < 1 || n > 4 { // one with a description and one without
				t.Errorf("%d PCP requests, want one or two, with at most one repetition each", n)
			}
			wantRules(t, home, 0)
		})
	}
}
