package labtest

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// reachPath is a path from the internet to a host, with what each prober shows on it.
type reachPath struct {
	name   string
	uplink lab.Uplink // the second uplink of the host
	// socket is what has the port: a socket of reachProgram if it is empty, or "none", or a socket of
	// another program: "service", or "loopback" if it listens only there. With "none" and
	// "loopback", package reach opens the port for the measurement.
	socket string
	setUp  func(*testing.T, *reachLab) // after the grants
	// fresh means that the second uplink has never reached the port. Otherwise it has, before
	// setUp. Path needs this to tell a blocked port from a fault of the uplink.
	fresh bool
	// closed has the versions of IP over which nothing arrives from the internet.
	closed string
	// want is what the probers show. The key is a prober, or a prober with a network and the
	// version of IP, as in "path/tcp/4", or with one of the two. A value has alternatives.
	want map[string][]string
	// falseNo are the cells that show "unreachable" although bytes arrive, and why nothing can
	// be done about it.
	falseNo map[string]string
	// ci are the cells that are measured in each run. All others belong to the long form.
	ci []string
}

const (
	unknown, unreachable                      = "unknown", "unreachable"
	listens, fromLAN, fromRouter, fromOutside = "reachable listening", "reachable lan", "reachable router", "reachable internet"
	fromLANInferred                           = "reachable lan (inferred)"
	noEvidence                                = "–"
)

// elsewhere is why a program in another network namespace seems to be missing.
const elsewhere = "the table of sockets has only those of the own network namespace"

// reachBase is what the probers show if everything works.
var reachBase = map[string][]string{
	"listening": {listens},
	"router":    {fromLAN},
	"hairpin":   {unknown}, // this router has no NAT loopback, and nothing is translated over IPv6
	"path":      {fromOutside},
	"path/6":    {unknown}, // the kernel sends nothing to its own address through another interface
	"phone/tcp": {fromOutside},
	"phone/udp": {unknown}, // browsers use TCP
	"visit/tcp": {fromOutside},
	"visit/udp": {noEvidence}, // a datagram may be a response
	"reflector": {fromOutside},
	"stun/tcp":  {unknown}, // STUN uses UDP
	"stun/udp":  {fromOutside},
	"ssh":       {fromOutside},
}

// except returns what the probers show on a path that differs from one that works.
func except(changes map[string][]string) map[string][]string {
	all := maps.Clone(reachBase)
	maps.Copy(all, changes)
	return all
}

// blocked is except for a path on which nothing arrives from the internet.
func blocked(changes map[string][]string) map[string][]string {
	all := except(map[string][]string{"path": {unreachable}, "phone/tcp": {unknown}, "visit/tcp": {noEvidence}, "reflector": {unreachable}, "stun/udp": {unreachable}, "ssh": {unreachable}})
	maps.Copy(all, changes)
	return all
}

// lanFirewall makes a firewall of the host in the home. The last rules decide about new
// connections.
func lanFirewall(rules string) func(*testing.T, *reachLab) {
	return func(t *testing.T, l *reachLab) {
		t.Helper()
		l.home.Lan.Nft(t, `table inet hostfirewall {
	chain input {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto ipv6-icmp accept
		`+rules+`
	}
}
`)
	}
}

// providerBlocks drops what arrives at one port from the internet, before the router sees it.
func providerBlocks(t *testing.T, l *reachLab) { t.Helper(); dropAtProvider(t, l, "") }

// providerBlocks4 is providerBlocks for IPv4 alone.
func providerBlocks4(t *testing.T, l *reachLab) {
	t.Helper()
	dropAtProvider(t, l, "meta nfproto ipv4")
}

func dropAtProvider(t *testing.T, l *reachLab, packets string) {
	t.Helper()
	l.home.Router.Nft(t, `table inet provider {
	chain prerouting {
		type filter hook prerouting priority -300;
		iifname "wan0" `+packets+` meta l4proto { tcp, udp } th dport 8080 drop
	}
}
`)
}

// filterByAddress makes the router admit only addresses to which the host has sent, from the
// port to which they send (RFC 4787, address-dependent filtering), or from any port. Each port of
// a UDP or TCP mapping is filtered in this way by some routers.
func filterByAddress(anyPort bool) func(*testing.T, *reachLab) {
	return func(t *testing.T, l *reachLab) {
		t.Helper()
		var rules strings.Builder
		rules.WriteString("table inet filter_by_address {\n")
		for family, ip := range map[string]string{"ipv4_addr": "ip", "ipv6_addr": "ip6"} {
			fmt.Fprintf(&rules, "set any_%[1]s { type %[2]s; flags dynamic; size 65535; }\nset port_%[1]s { type inet_proto . inet_service . %[2]s; flags dynamic; size 65535; }\n", ip, family)
		}
		rules.WriteString("chain forward {\ntype filter hook forward priority -20;\n")
		for _, ip := range []string{"ip", "ip6"} {
			admitted := "meta l4proto . th dport . " + ip + " saddr != @port_" + ip
			if anyPort {
				admitted = ip + " saddr != @any_" + ip
			}
			fmt.Fprintf(&rules, `iifname "lan0" oifname "wan0" add @any_%[1]s { %[1]s daddr }
iifname "lan0" oifname "wan0" meta l4proto { tcp, udp } add @port_%[1]s { meta l4proto . th sport . %[1]s daddr }
iifname "wan0" oifname "lan0" ct state new meta l4proto { tcp, udp } %[2]s drop
`, ip, admitted)
		}
		rules.WriteString("}\n}\n")
		l.home.Router.Nft(t, rules.String())
	}
}

// listsOnly deletes the forwarding of the router. The daemon still lists it.
func listsOnly(t *testing.T, l *reachLab) {
	t.Helper()
	l.home.Daemon.Forget(t)
}

// loopback makes the router forward connections from its own network to its external address.
func loopback(translateSource bool) func(*testing.T, *reachLab) {
	return func(t *testing.T, l *reachLab) {
		t.Helper()
		source := `ip saddr 192.168.77.0/24 oifname "lan0" masquerade`
		if !translateSource {
			source = ""
		}
		l.home.Router.Nft(t, `table inet loopback {
	chain prerouting {
		type nat hook prerouting priority -101;
		iifname { "lan0", "guest0" } ip daddr `+l.home.External.String()+` meta l4proto { tcp, udp } th dport 8080 dnat ip to `+l.home.Lan.Addr().String()+`
	}
	chain postrouting {
		type nat hook postrouting priority 99;
		`+source+`
	}
}
add rule inet filter forward iifname { "lan0", "guest0" } oifname "lan0" accept
`)
	}
}

// translatePorts makes the router of the second uplink choose other source ports. Another
// program's connections are recognized by their source ports.
func translatePorts(t *testing.T, l *reachLab) {
	t.Helper()
	l.uplink.Nft(t, `flush chain inet filter postrouting
add rule inet filter postrouting oifname "wan0" meta l4proto tcp masquerade to :61000-61999 random
add rule inet filter postrouting oifname "wan0" masquerade
`)
}

// container makes the host forward the port to another one, as to a container.
func container(t *testing.T, l *reachLab) {
	t.Helper()
	c := l.home.Join("container", "192.168.77.9/24")
	for _, network := range []string{"tcp", "udp"} {
		c.Echo(t, network, fmt.Sprintf(":%d", reachPort))
	}
	l.home.Lan.Sysctl(t, "net.ipv4.ip_forward", "1")
	l.home.Lan.Nft(t, `table ip container {
	chain prerouting {
		type nat hook prerouting priority -100;
		ip daddr `+l.home.Lan.Addr().String()+` meta l4proto { tcp, udp } th dport 8080 dnat to `+c.Addr().String()+`
	}
	chain postrouting {
		type nat hook postrouting priority 100;
		ip daddr `+c.Addr().String()+` masquerade
	}
}
`)
}

// uplinkRule adds rules for all packets that the host sends to the second uplink.
func uplinkRule(rules ...string) func(*testing.T, *reachLab) {
	return func(t *testing.T, l *reachLab) {
		t.Helper()
		for _, r := range rules {
			l.uplink.Rule(t, "prerouting", `iifname "lan0" `+r)
		}
	}
}

func allOf(a, b func(*testing.T, *reachLab)) func(*testing.T, *reachLab) {
	return func(t *testing.T, l *reachLab) { t.Helper(); a(t, l); b(t, l) }
}

// reachPaths are the paths of the matrix.
var reachPaths = []reachPath{
	{
		name: "works", want: reachBase,
		ci: []string{"router", "path/4", "phone/tcp/4", "visit/tcp", "listening/tcp/4", "reflector", "stun/udp", "ssh"},
	},
	{
		name: "works, NAT loopback", setUp: loopback(true),
		want: except(map[string][]string{"hairpin": {fromRouter}, "hairpin/6": {unknown}}),
		ci:   []string{"hairpin/4"},
	},
	{ // the host drops packets from its own address
		name: "works, NAT loopback that keeps the source", setUp: loopback(false), want: reachBase,
	},
	{
		name: "listed, not forwarded", setUp: listsOnly, closed: "46", want: blocked(nil),
		ci: []string{"hairpin/tcp/4", "path/4", "phone/tcp/4", "visit/tcp/4", "reflector/tcp/4"},
	},
	{
		name: "host firewall drops", setUp: lanFirewall(""), closed: "46",
		want: blocked(map[string][]string{"router/tcp": {unreachable}, "router/udp": {unknown}}),
		ci:   []string{"router/tcp/4", "router/udp/4"},
	},
	{
		name: "host firewall rejects", setUp: lanFirewall("meta l4proto tcp reject with tcp reset\nreject"), closed: "46",
		want: blocked(map[string][]string{"router/tcp": {unreachable}, "router/udp": {unknown}}),
	},
	{
		name: "host firewall allows the LAN only", closed: "46",
		setUp: lanFirewall("ip saddr 192.168.77.0/24 accept\nip6 saddr { 2a0c:7777:1::/64, fe80::/10 } accept"),
		want:  blocked(nil),
	},
	{name: "provider blocks the port", setUp: providerBlocks, closed: "46", want: blocked(nil)},
	{
		name: "provider blocks the port, never reached before", setUp: providerBlocks, closed: "46", fresh: true,
		want: blocked(map[string][]string{"path": {unknown}, "reflector": {unknown}, "stun/udp": {unknown}, "ssh": {unknown}}),
	},
	{
		name: "provider blocks the port, NAT loopback", setUp: allOf(providerBlocks, loopback(true)), closed: "46",
		want: blocked(map[string][]string{"hairpin": {fromRouter}, "hairpin/6": {unknown}}),
	},
	{
		name: "provider blocks the port over IPv4", setUp: providerBlocks4, closed: "4",
		want: except(map[string][]string{"path/4": {unreachable}, "phone/tcp/4": {unknown}, "visit/tcp/4": {noEvidence}, "reflector/4": {unreachable}, "stun/udp/4": {unreachable}, "ssh/4": {unreachable}}),
		ci:   []string{"visit/tcp", "reflector/udp"},
	},
	{ // the request to a helper comes from another port, so it does not admit the helper
		name: "router filters by address", setUp: filterByAddress(false), closed: "46", want: blocked(nil),
	},
	{
		name: "second uplink is dead", setUp: uplinkRule("drop"),
		want: except(map[string][]string{"path": {unknown}}),
	},
	{
		name: "second uplink refuses everything", setUp: uplinkRule("meta l4proto tcp reject with tcp reset", "reject with icmpx port-unreachable"),
		want: except(map[string][]string{"path": {unknown}}),
	},
	{
		name: "second uplink has a public address", uplink: lab.Uplink{Addr: netip.MustParsePrefix("46.46.47.2/24"), Untranslated: true},
		want: except(map[string][]string{"path": {unknown}}),
	},
	{ // as between two customers of one provider
		name: "second uplink has a shared address", uplink: lab.Uplink{Addr: netip.MustParsePrefix("100.64.5.2/24"), Untranslated: true},
		want: except(map[string][]string{"path": {unknown}}),
	},
	{
		name: "second uplink is translated to a shared address", uplink: lab.Uplink{},
		setUp: func(t *testing.T, l *reachLab) {
			t.Helper()
			l.home.Wan.Nft(t, `table ip provider {
	chain postrouting {
		type nat hook postrouting priority 100;
		ip saddr 46.46.46.1 ip daddr `+l.home.External.String()+` snat to 100.64.7.7
	}
}
`)
		},
		want: except(map[string][]string{"path": {unknown}}),
	},
	{
		name: "second uplink is a guest network of the router", uplink: lab.Uplink{Guest: true}, setUp: loopback(true),
		want: except(map[string][]string{"hairpin": {fromRouter}, "hairpin/6": {unknown}, "path": {unknown}}),
	},
	{
		name: "second uplink is a guest network, without NAT loopback", uplink: lab.Uplink{Guest: true},
		want: except(map[string][]string{"path": {unknown}}),
	},
	{
		name: "strict reverse path filter", want: except(map[string][]string{"path/tcp/4": {unknown, fromOutside}}),
		setUp: func(t *testing.T, l *reachLab) {
			t.Helper()
			l.home.Lan.Sysctl(t, "net.ipv4.conf.all.rp_filter", "1")
		},
	},
	{
		name: "second uplink blocks the port", setUp: uplinkRule("meta l4proto { tcp, udp } th dport 8080 drop"),
		want:    except(map[string][]string{"path": {unreachable}, "path/6": {unknown}}),
		falseNo: map[string]string{"path": "an uplink that blocks a port outbound looks like a port that is blocked inbound"},
	},
	{
		name: "no listener", socket: "none", closed: "46",
		want: except(map[string][]string{"listening": {unreachable}, "visit/tcp": {noEvidence}}),
		ci:   []string{"listening/tcp/4", "path/tcp/4"},
	},
	{
		name: "program in a container", socket: "none", setUp: container, closed: "6", fresh: true,
		want: except(map[string][]string{
			"listening": {unreachable}, "router/tcp/4": {unknown}, "router/udp/4": {unknown},
			"path": {unknown}, "phone/tcp/4": {unknown}, "visit/tcp": {noEvidence},
			"reflector/4": {unknown}, "stun/udp/4": {unknown}, "ssh/4": {unknown},
		}),
		falseNo: map[string]string{
			"reflector/4": elsewhere, "stun/4": elsewhere, "ssh/4": elsewhere, "listening/4": elsewhere, "router/4": elsewhere, "hairpin/4": elsewhere, "path/4": elsewhere, "phone/4": elsewhere, "visit/4": elsewhere,
		},
	},
	{
		name: "listener on loopback only", socket: "loopback", closed: "46",
		want: except(map[string][]string{"listening": {unreachable}, "visit/tcp": {noEvidence}}),
		ci:   []string{"listening/tcp/4"},
	},
	{
		name: "service of another program", socket: "service",
		want: except(map[string][]string{
			"router": {fromLANInferred}, "path/udp": {unknown}, "phone/tcp": {unknown}, "visit/tcp": {noEvidence},
			"reflector/udp": {unknown}, "stun/udp": {unknown}, "ssh/udp": {unknown},
		}),
		ci: []string{"path/tcp/4", "router/tcp/4", "reflector/tcp"},
	},
	{
		name: "service of another program, second uplink translates source ports", socket: "service", setUp: translatePorts,
		want: except(map[string][]string{
			"router": {fromLANInferred}, "path": {unknown}, "phone/tcp": {unknown}, "visit/tcp": {noEvidence},
			"reflector/udp": {unknown}, "stun/udp": {unknown}, "ssh/udp": {unknown},
		}),
	},
	{
		name: "service of another program, listed, not forwarded", socket: "service", setUp: listsOnly, closed: "46",
		want: blocked(map[string][]string{"router": {fromLANInferred}, "path/udp": {unknown}, "reflector/udp": {unknown}, "stun/udp": {unknown}, "ssh/udp": {unknown}}),
	},
	{
		name: "service of another program, host firewall drops", socket: "service", setUp: lanFirewall(""), closed: "46",
		want: blocked(map[string][]string{"router": {unknown}, "path/udp": {unknown}, "reflector/udp": {unknown}, "stun/udp": {unknown}, "ssh/udp": {unknown}}),
	},
}
