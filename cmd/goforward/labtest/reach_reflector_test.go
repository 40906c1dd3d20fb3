package labtest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/natforward/goforward/internal/dialback"
	"github.com/natforward/goforward/internal/lab"
)

// reachCombinations are TCP and UDP over IPv4 and IPv6. The first ones belong to the short form.
var reachCombinations = []reachCell{{network: "tcp"}, {network: "udp", six: true}, {network: "udp"}, {network: "tcp", six: true}}

// String returns the network and the version of IP.
func (c reachCell) String() string { return c.network + " over IPv" + c.version() }

// by measures the port by a prober and logs what that shows.
func (l *reachLab) by(t *testing.T, c reachCell, when, prober string) (reachReply, reachEvidence) {
	t.Helper()
	r := l.program.call(reachCall{Op: "verify", Network: c.network, Target: l.targets[c.six], Probers: []string{prober}, Within: 2 * maxWait}, nil)
	e := r.Evidence[1]
	t.Logf("%s, %s, %s: %s, %.2f s: %s", c, when, prober, e, r.Took.Seconds(), e.Detail)
	return r, e
}

// want is by, and checks what the prober shows, and that the conclusion is the same.
func (l *reachLab) want(t *testing.T, c reachCell, when, prober, want string, says ...string) {
	t.Helper()
	r, e := l.by(t, c, when, prober)
	if e.String() != want || provesInternet(r) != (want == fromOutside) || want != fromOutside && r.Verdict != want {
		t.Errorf("%s, %s, %s: %s, want %s: %+v", c, when, prober, e, want, r)
	}
	for _, s := range says {
		if !strings.Contains(e.Detail, s) {
			t.Errorf("%s, %s, %s: %q is not in the detail: %s", c, when, prober, s, e.Detail)
		}
	}
}

// at returns an address of the wan host with this port, over IPv4 and IPv6.
func (h *reachHelpers) at(port uint16) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(h.first, port), netip.AddrPortFrom(h.first6, port)}
}

// noHelpers is for startHelpers.
func noHelpers(string) bool { return false }

// TestReachReflectorProxy measures by reflectors behind nginx.
func TestReachReflectorProxy(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "reach: a reflector behind a proxy")
	l := newReachLab(t, lab.Uplink{})
	l.open(t, "")
	h := startHelpers(t, l.home, noHelpers)
	other := l.home.JoinOutside("proxy", "45.45.45.9/24")
	otherAddrs := func(port uint16) []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(other.Addr(), port), netip.AddrPortFrom(netip.MustParseAddr("2a0c:7777:2::9"), port)}
	}
	other.Exec(t, "ip", "addr", "add", "2a0c:7777:2::9/64", "dev", "eth0", "nodad")
	other.Exec(t, "ip", "-6", "route", "add", "default", "via", "2a0c:7777:2::1")
	local := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
	loopback, proxy := netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("45.45.45.9/32")

	startReflector(t, l.home.Wan, reflectorArgs{Addresses: []netip.AddrPort{local(8201)}, TrustProxy: []netip.Prefix{loopback}})
	startProxy(t, l.home.Wan, local(8201), "", h.at(81)...)
	startReflector(t, l.home.Wan, reflectorArgs{Addresses: []netip.AddrPort{local(8202)}})
	startProxy(t, l.home.Wan, local(8202), "", h.at(82)...)
	startReflector(t, l.home.Wan, reflectorArgs{Addresses: h.at(8203), TrustProxy: []netip.Prefix{proxy}})
	startProxy(t, other, h.at(8203)[0], "", otherAddrs(83)...)
	startReflector(t, l.home.Wan, reflectorArgs{Addresses: h.at(8204)})
	startProxy(t, other, h.at(8204)[0], "", otherAddrs(84)...)
	startProxy(t, other, h.at(8203)[0], "proxy_ignore_headers X-Accel-Buffering;", otherAddrs(85)...)

	for i, c := range reachCombinations {
		prober := func(addresses []netip.AddrPort) string { return "reflector:" + urls(addresses, "")[c.six] }
		l.want(t, c, "a trusted proxy", prober(h.at(81)), fromOutside)
		l.want(t, c, "a trusted proxy on another host", prober(otherAddrs(83)), fromOutside)
		l.want(t, c, "a proxy that is not trusted", prober(h.at(82)), unknown, "HTTP status 403", "127.0.0.1", "--trust-proxy")
		if i > 0 && !longChecks {
			continue
		}
		// The reflector connects to the proxy.
		l.want(t, c, "a proxy on another host that is not trusted", prober(otherAddrs(84)), unknown, "sees this host at 45.45.45.9", l.targets[c.six].External.Addr().String())
		l.want(t, c, "a proxy on another host that buffers", prober(otherAddrs(85)), fromOutside)
	}
}

// TestReachReflectorTranslated measures by a reflector whose host has a private address that is translated one
// to one, as virtual machines have. It announces the private address. The port of another program
// cannot be measured by it.
func TestReachReflectorTranslated(t *testing.T) {
	t.Parallel()
	for _, socket := range []string{"", "service"} {
		name := map[string]string{"": "own socket", "service": "service of another program"}[socket]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "reach: a reflector behind a one-to-one NAT, "+name)
			l := newReachLab(t, lab.Uplink{})
			l.open(t, socket)
			provider := l.home.JoinOutside("nat", "45.45.45.10/24")
			vps := l.home.JoinBehind(t, provider, "vps", "10.9.9.2/24")
			prober := "reflector:" + startReflector(t, vps, reflectorArgs{Addresses: []netip.AddrPort{addrPort(vps, reflectorPort)}})[false]
			prober = strings.Replace(prober, "10.9.9.2", "45.45.45.10", 1)
			for _, network := range []string{"tcp", "udp"} {
				c := reachCell{network: network}
				switch {
				case socket == "":
					l.want(t, c, name, prober, fromOutside, "from 45.45.45.10:")
				case network == "tcp":
					l.want(t, c, name, prober, unknown, "http://45.45.45.10:8100")
				}
			}
		})
	}
}

// TestReachFilterByAddress measures through a router that admits only hosts to which the home has sent
// packets. A request to a helper comes from another port than the measured one. If the router filters
// for each port, no helper is admitted. If it filters for the home as a whole, a helper that connects
// from the address to which the request went is admitted, so that the port seems reachable. A
// helper with a second address shows the truth.
func TestReachFilterByAddress(t *testing.T) {
	t.Parallel()
	for i, c := range reachCombinations {
		for _, anyPort := range []bool{false, true} {
			if i > 0 && !longChecks {
				continue
			}
			name := c.String() + map[bool]string{false: ", for each port", true: ", for the whole home"}[anyPort]
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				if i == 0 {
					lab.Scenario(t, "reach: router filters by address, "+name)
				}
				testReachFilterByAddress(t, c, anyPort)
			})
		}
	}
}

func testReachFilterByAddress(t *testing.T, c reachCell, anyPort bool) {
	t.Helper()
	l := newReachLab(t, lab.Uplink{})
	h := startHelpers(t, l.home, func(prober string) bool {
		return prober == "reflector" || prober == "ssh" && canRunSSHD() || prober == "stun" && c.network == "udp"
	})
	l.helpers = h
	l.useSSH()
	name := func(prober string) string { return h.prober(reachCell{prober, c.network, c.six}) }
	oneAddress := []string{"reflector:" + startReflector(t, l.home.Wan, reflectorArgs{Addresses: h.at(8102), DialFrom: []netip.Addr{h.first, h.first6}})[c.six]}
	if canRunSSHD() {
		oneAddress = append(oneAddress, name("ssh"))
	}
	twoAddresses := []string{name("reflector")} // it connects from the second address by itself
	if c.network == "udp" {
		twoAddresses = append(twoAddresses, name("stun"))
	}
	if c.network == "udp" {
		filterByAddress(anyPort)(t, l)
		l.checkFilter(t, h, c.six, anyPort)
		l.home.Router.Nft(t, "delete table inet filter_by_address")
	}
	l.open(t, "")
	for _, prober := range slices.Concat(oneAddress, twoAddresses) {
		l.want(t, c, "before", prober, fromOutside)
	}
	filterByAddress(anyPort)(t, l)
	if l.answers(t, c.network, c.six) {
		t.Fatal("the port is reachable")
	}
	for i, prober := range oneAddress {
		if anyPort { // it is wrong here: nothing can be done about it with one address
			l.want(t, c, "one address", prober, fromOutside)
		} else if i == 0 || longChecks {
			l.want(t, c, "one address", prober, unreachable)
		}
	}
	for _, prober := range twoAddresses {
		if anyPort || longChecks {
			l.want(t, c, "two addresses", prober, unreachable)
		}
	}
	if anyPort {
		if stranger := l.home.JoinOutside("stranger", "45.45.45.9/24"); !c.six && l.admits(t, stranger, c) {
			t.Error("a host that was not contacted is admitted")
		}
	}
}

// admits reports whether a host outside gets an answer from the port.
func (l *reachLab) admits(t *testing.T, host *lab.Host, c reachCell) bool {
	t.Helper()
	send := host.SendTCP
	if c.network == "udp" {
		send = host.SendUDP
	}
	_, err := send(t, l.targets[c.six].External, "hello")
	return err == nil
}

// checkFilter checks the filter itself: after a datagram from the port to an address, all ports of this
// address are admitted, and no other address.
func (l *reachLab) checkFilter(t *testing.T, h *reachHelpers, six, anyPort bool) {
	t.Helper()
	first, second, internal := h.first, h.second, l.targets[six].Internal
	if six {
		first, second = h.first6, h.second6
	}
	pc, err := l.home.Lan.ListenPacket("udp", internal.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pc.Close() }()
	sink := l.home.Wan.Echo(t, "udp", netip.AddrPortFrom(first, 9000).String())
	arrives := func(from netip.Addr) bool {
		t.Helper()
		conn, err := l.home.Wan.DialFrom(t.Context(), "udp", from, l.targets[six].External.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.Write([]byte("from outside")); err != nil {
			t.Fatal(err)
		}
		_ = pc.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		for buf := make([]byte, 100); ; {
			n, _, err := pc.ReadFrom(buf)
			if err != nil {
				return false
			}
			if string(buf[:n]) == "from outside" {
				return true
			}
		}
	}
	if arrives(first) || arrives(second) {
		t.Error("the filter admits a host that was not contacted")
	}
	if reply, err := l.home.Lan.SendUDP(t, sink.Addr, "hello"); err != nil { // from another port
		t.Errorf("%q, %v", reply, err)
	}
	if arrives(first) != anyPort {
		t.Errorf("the filter admits a host that was contacted from another port: %v", !anyPort)
	}
	if _, err := pc.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(sink.Addr)); err != nil {
		t.Fatal(err)
	}
	if !arrives(first) || arrives(second) {
		t.Error("the filter is not address-dependent")
	}
}

// TestReachReflectorAddresses measures behind routers whose external address is not the one that
// the internet sees.
func TestReachReflectorAddresses(t *testing.T) {
	t.Parallel()
	t.Run("translated one to one", func(t *testing.T) {
		t.Parallel()
		lab.Scenario(t, "reach: router with a private address that is translated one to one")
		l, outer := newDoubleNATLab(t)
		prober := "reflector:" + startReflector(t, outer.Wan, reflectorArgs{Addresses: []netip.AddrPort{addrPort(outer.Wan, reflectorPort)}})[false]
		fresh := "reflector:" + startReflector(t, outer.Wan, reflectorArgs{Addresses: []netip.AddrPort{addrPort(outer.Wan, 8102)}})[false]
		outer.Router.Nft(t, `add rule inet filter prerouting iifname "wan0" dnat ip to 10.66.66.2
add rule inet filter forward iifname "wan0" oifname "lan0" accept
`)
		for _, network := range []string{"tcp", "udp"} {
			c := reachCell{network: network}
			target := l.targets[false]
			for _, external := range []netip.Addr{target.External.Addr(), {}, netip.MustParseAddr("100.64.1.2")} { // private, hidden, shared
				l.targets[false] = reachTarget{Internal: target.Internal, Gateway: target.Gateway, Interface: "eth0", Port: reachPort}
				if external.IsValid() {
					l.targets[false] = reachTarget{External: netip.AddrPortFrom(external, reachPort), Internal: target.Internal, Gateway: target.Gateway, Interface: "eth0"}
				}
				r, e := l.by(t, c, "external address "+external.String(), prober)
				if e.String() != fromOutside || !provesInternet(r) || r.External != externalAddr(outer, reachPort) {
					t.Errorf("%+v", r)
				}
			}
			l.targets[false] = target
		}
		if !longChecks {
			return
		}
		outer.Router.Exec(t, "nft", "flush", "chain", "inet", "filter", "prerouting")
		for _, network := range []string{"tcp", "udp"} {
			l.want(t, reachCell{network: network}, "not translated any more", prober, unreachable, "reached 45.45.45.1:8080 before")
			l.want(t, reachCell{network: network}, "not translated any more", fresh, unknown, "sees this host at 45.45.45.1")
		}
	})
	t.Run("carrier-grade NAT", func(t *testing.T) {
		t.Parallel()
		lab.Scenario(t, "reach: router behind another NAT")
		l, outer := newDoubleNATLab(t)
		prober := "reflector:" + startReflector(t, outer.Wan, reflectorArgs{Addresses: []netip.AddrPort{addrPort(outer.Wan, reflectorPort)}})[false]
		if longChecks {
			for _, network := range []string{"tcp", "udp"} {
				l.want(t, reachCell{network: network}, "behind another NAT", prober, unknown, "sees this host at 45.45.45.1", "10.66.66.2")
			}
		}
		for _, network := range []string{"tcp", "udp"} {
			outer.Router.Echo(t, network, fmt.Sprintf(":%d", reachPort))
			l.want(t, reachCell{network: network}, "the other router answers", prober, unknown, `says "silent"`, "sees this host at 45.45.45.1", "10.66.66.2")
		}
	})
	t.Run("wrong address", func(t *testing.T) {
		t.Parallel()
		lab.Scenario(t, "reach: router that reports a wrong external address")
		l := &reachLab{home: lab.Home(t, lab.Router{IPv6: true, ExtraConf: []string{"ext_ip=45.45.45.99"}}), targets: map[bool]reachTarget{}}
		f := newForwarder(t, l.home.Lan, config{CheckEvery: -1})
		m := f.enable(option{Name: "both", Port: reachPort})
		if m.External != netip.MustParseAddrPort("45.45.45.99:8080") {
			t.Fatalf("%+v", m)
		}
		l.targets[false] = reachTarget{External: m.External, Internal: m.Internal, Gateway: m.Gateway.Addr(), Interface: "eth0"}
		l.targets[true] = reachTarget{Internal: lanAddr6(l.home, reachPort)} // for open
		l.program = startProber(t, l.home.Lan)
		l.open(t, "")
		h := startHelpers(t, l.home, func(prober string) bool { return prober == "reflector" })
		for _, network := range []string{"tcp", "udp"} {
			l.want(t, reachCell{network: network}, "wrong address", "reflector:"+h.reflector[false], unknown, "45.45.45.1:", "45.45.45.99")
		}
	})
}

// newDoubleNATLab returns a lab with a router whose port is forwarded by hand, and which is behind
// another one.
func newDoubleNATLab(t *testing.T) (l *reachLab, outer *lab.HomeNet) {
	t.Helper()
	in, outer := lab.DoubleNAT(t, lab.Router{}, lab.Router{})
	in.Router.Nft(t, `add rule inet filter prerouting iifname "wan0" meta l4proto { tcp, udp } th dport 8080 dnat ip to `+in.Lan.Addr().String()+`
add rule inet filter forward iifname "wan0" oifname "lan0" th dport 8080 accept
`)
	l = &reachLab{home: in, targets: map[bool]reachTarget{
		false: {External: externalAddr(in, reachPort), Internal: addrPort(in.Lan, reachPort), Gateway: in.Gateway, Interface: "eth0"},
	}}
	l.program = startProber(t, in.Lan)
	l.program.call(reachCall{Op: "open", Network: "tcp", Address: fmt.Sprintf(":%d", reachPort)}, nil)
	l.program.call(reachCall{Op: "open", Network: "udp4", Address: l.targets[false].Internal.String()}, nil)
	return l, outer
}

// TestReachReflectorForgedHeaders lets a host on the internet ask reflectors for connections to
// the home. They connect only to that host.
func TestReachReflectorForgedHeaders(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "reach: a stranger asks a reflector to connect to another host")
	l := newReachLab(t, lab.Uplink{})
	l.open(t, "")
	h := startHelpers(t, l.home, noHelpers)
	local := netip.MustParseAddrPort("127.0.0.1:8201")
	loopback := netip.MustParsePrefix("127.0.0.1/32")
	startReflector(t, l.home.Wan, reflectorArgs{Addresses: append(h.at(reflectorPort), local), TrustProxy: []netip.Prefix{loopback}})
	startProxy(t, l.home.Wan, local, "", h.at(80)...)
	stranger := l.home.JoinOutside("stranger", "45.45.45.66/24")
	stranger.Exec(t, "ip", "addr", "add", "2a0c:7777:2::66/64", "dev", "eth0", "nodad")
	wan := l.home.Router.Capture(t, "wan0")
	for _, network := range []string{"tcp", "udp"} { // it repeats the nonce, which is not the answer
		stranger.Echo(t, network, fmt.Sprintf(":%d", reachPort))
	}
	var requests sync.WaitGroup
	for _, address := range append(h.at(reflectorPort), h.at(80)...) {
		own, victim := netip.MustParseAddr("45.45.45.66"), l.targets[address.Addr().Is6()].External
		if address.Addr().Is6() {
			own = netip.MustParseAddr("2a0c:7777:2::66")
		}
		body, err := json.Marshal(map[string]any{
			"v": dialback.Version, "address": victim.Addr(), "host": victim, "probes": []map[string]any{
				{"protocol": "tcp", "port": reachPort, "nonce": strings.Repeat("a", 21) + "A", "want": strings.Repeat("b", 21) + "A", "address": victim.Addr(), "host": victim},
				{"protocol": "udp", "port": reachPort, "nonce": strings.Repeat("a", 21) + "A", "want": strings.Repeat("b", 21) + "A", "address": victim.Addr()},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"-sS", "--max-time", "20", "-H", "Content-Type: application/json", "--data-binary", string(body)}
		for _, header := range []string{"X-Forwarded-For", "X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "X-Original-Forwarded-For"} {
			args = append(args, "-H", header+": "+victim.Addr().String())
		}
		args = append(args, "-H", "Forwarded: for="+victim.Addr().String(), "-H", "Host: "+victim.String(), "http://"+address.String()+dialback.ProbePath)
		requests.Go(func() {
			out, err := stranger.Run(t.Context(), "curl", args...)
			results := 0
			for line := range strings.Lines(out) {
				var l dialback.Line
				if err := json.Unmarshal([]byte(line), &l); err != nil || l.Address != own || l.State == dialback.StateDone && l.Result != dialback.Silent {
					t.Errorf("%v: %v: %s", address, err, line)
				}
				if l.State == dialback.StateDone {
					results++
				}
			}
			if err != nil || results != 2 {
				t.Errorf("%v: %v\n%s", address, err, out)
			}
		})
	}
	requests.Wait()
	for _, p := range wan.Packets() {
		if p.To.Port() == reachPort || slices.Contains([]netip.Addr{h.first, h.first6}, p.From.Addr()) {
			t.Errorf("a packet to the home: %+v", p)
		}
	}
	if !l.answers(t, "tcp", false) {
		t.Error("the port is not reachable, so this was no test")
	}
}
