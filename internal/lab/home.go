package lab

import (
	"net/netip"
	"strings"
	"testing"
)

// HomeNet is a home network with its router, and a host outside.
type HomeNet struct {
	Lan    *Host   // 192.168.77.2
	Router *Host   // lan0 192.168.77.1, wan0 with the external address
	Wan    *Host   // the next address after the external one
	Switch *Switch // connects Lan, Router and all hosts that are plugged in
	Daemon *Daemon // miniupnpd of the router, started

	Gateway  netip.Addr // the router's address in the home
	External netip.Addr // the router's external address

	// These are set with Router.IPv6.
	Gateway6 netip.Addr // the router's address in the home
	Lan6     netip.Addr // the global address of Lan

	provider *Switch // connects Router and Wan
	lab      *Lab
}

// Home builds a home network with this router and waits until the router works.
func Home(t testing.TB, router Router) *HomeNet {
	t.Helper()
	l := New(t)
	home := &HomeNet{Lan: l.Host("lan"), Wan: l.Host("wan"), Switch: l.Switch("switch"), lab: l}
	home.Router = l.Host("router")
	home.Switch.Plug(home.Router.Port("lan0", router.lanPrefix().String()))
	home.Gateway = router.lanPrefix().Addr()
	home.plugIn(home.Lan, lanAddr)
	home.provider = l.Switch("provider")
	home.provider.Plug(home.Router.Port("wan0", router.wanPrefix().String()))
	home.provider.Plug(home.Wan.Port("eth0", router.outsideHostPrefix().String()))
	if router.IPv6 {
		home.addIPv6(t)
	}
	home.setUpRouter(t, router)
	return home
}

// SecondRouter adds another router to the home, with the address 192.168.77.254. It
// returns the same home as seen through the new router. The hosts continue to use the
// first router until their default route is changed.
func (home *HomeNet) SecondRouter(t testing.TB, router Router) *HomeNet {
	t.Helper()
	router.lan = netip.MustParsePrefix("192.168.77.254/24")
	l := home.lab
	second := &HomeNet{
		Lan: home.Lan, Router: l.Host("router2"), Wan: l.Host("wan2"), Switch: home.Switch,
		Gateway: router.lan.Addr(), lab: l,
	}
	home.Switch.Plug(second.Router.Port("lan0", router.lan.String()))
	l.Connect(second.Router.Port("wan0", router.wanPrefix().String()), second.Wan.Port("eth0", router.outsideHostPrefix().String()))
	second.setUpRouter(t, router)
	return second
}

// DoubleNAT builds a home whose router is behind another router. Lan of the outer network
// is Router of the inner network, and Wan of the inner network is Router of the outer
// network. The network between them is 10.66.66.0/24.
func DoubleNAT(t testing.TB, inner, outer Router) (in, out *HomeNet) {
	t.Helper()
	inner.WAN = netip.MustParsePrefix("10.66.66.2/24")
	outer.lan = netip.MustParsePrefix("10.66.66.1/24")
	l := New(t)
	in = &HomeNet{
		Lan: l.Host("lan"), Router: l.Host("router"), Wan: l.Host("outer"), Switch: l.Switch("switch"),
		Gateway: inner.lanPrefix().Addr(), lab: l,
	}
	out = &HomeNet{Lan: in.Router, Router: in.Wan, Wan: l.Host("wan"), Gateway: outer.lan.Addr(), lab: l}
	in.Switch.Plug(in.Router.Port("lan0", inner.lanPrefix().String()))
	in.plugIn(in.Lan, lanAddr)
	l.Connect(in.Router.Port("wan0", inner.WAN.String()), out.Router.Port("lan0", outer.lan.String()))
	l.Connect(out.Router.Port("wan0", outer.wanPrefix().String()), out.Wan.Port("eth0", outer.outsideHostPrefix().String()))
	in.Router.Exec(t, "ip", "route", "add", "default", "via", out.Gateway.String())
	out.setUpRouter(t, outer)
	in.setUpRouter(t, inner)
	return in, out
}

// setUpRouter turns a host with the ports lan0 and wan0 into a router.
func (home *HomeNet) setUpRouter(t testing.TB, router Router) {
	t.Helper()
	home.External = router.wanPrefix().Addr()
	home.Router.Sysctl(t, "net.ipv4.ip_forward", "1")
	// With the default rate limit, the kernel would drop most of the ICMP port
	// unreachable messages that the tests provoke.
	home.Router.Sysctl(t, "net.ipv4.icmp_ratelimit", "0")
	home.Router.Nft(t, ruleset)
	for _, r := range router.rules() {
		home.Router.Rule(t, r.hook, r.text)
	}
	home.Daemon = newDaemon(t, home.Router, router, home.Gateway)
	home.Daemon.Start(t)
}

// addIPv6 gives global addresses to the router, to Lan and to Wan.
func (home *HomeNet) addIPv6(t testing.TB) {
	t.Helper()
	home.Gateway6 = netip.MustParsePrefix(gatewayAddr6).Addr()
	home.Lan6 = netip.MustParsePrefix(lanAddr6).Addr()
	home.Router.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	for _, a := range []struct {
		host      *Host
		dev, addr string
		via       netip.Addr
	}{
		{home.Router, "lan0", gatewayAddr6, netip.Addr{}},
		{home.Router, "wan0", wanAddr6, netip.Addr{}},
		{home.Lan, "eth0", lanAddr6, home.Gateway6},
		{home.Wan, "eth0", outsideAddr6, netip.MustParsePrefix(wanAddr6).Addr()},
	} {
		a.host.Exec(t, "ip", "addr", "add", a.addr, "dev", a.dev, "nodad")
		if a.via.IsValid() {
			a.host.Exec(t, "ip", "-6", "route", "add", "default", "via", a.via.String(), "dev", a.dev)
		}
	}
	// Without this route, the daemon's multicast would leave by wan0.
	home.Router.Exec(t, "ip", "-6", "route", "add", "multicast", "ff02::1/128", "dev", "lan0", "table", "local")
}

// Join adds a host to the home, with an address as in "192.168.77.3/24".
func (home *HomeNet) Join(name, addr string) *Host {
	home.lab.t.Helper()
	h := home.lab.Host(name)
	home.plugIn(h, addr)
	return h
}

// JoinOutside adds a host to the router's external network.
func (home *HomeNet) JoinOutside(name, addr string) *Host {
	home.lab.t.Helper()
	h := home.lab.Host(name)
	home.provider.Plug(h.Port("eth0", addr))
	return h
}

// JoinBehind adds a host behind a host of the router's external network, whose address is translated
// to it one to one, for IPv4. The address is as in "10.9.9.2/24"; the host in front gets the address
// before it.
func (home *HomeNet) JoinBehind(t testing.TB, front *Host, name, addr string) *Host {
	t.Helper()
	prefix := netip.MustParsePrefix(addr)
	h, gateway := home.lab.Host(name), prefix.Addr().Prev()
	home.lab.Connect(h.Port("eth0", addr), front.Port("eth1", netip.PrefixFrom(gateway, prefix.Bits()).String()))
	h.Exec(t, "ip", "route", "add", "default", "via", gateway.String())
	front.Sysctl(t, "net.ipv4.ip_forward", "1")
	front.Nft(t, `table ip nat {
	chain prerouting {
		type nat hook prerouting priority -100;
		iifname "eth0" dnat to `+prefix.Addr().String()+`
	}
	chain postrouting {
		type nat hook postrouting priority 100;
		oifname "eth0" snat to `+front.Addr().String()+`
	}
}
`)
	return h
}

func (home *HomeNet) plugIn(h *Host, addr string) {
	t := home.lab.t
	t.Helper()
	home.Switch.Plug(h.Port("eth0", addr))
	h.Exec(t, "ip", "route", "add", "default", "via", home.Gateway.String())
}

// Rules returns the current port forwardings of the router. Each is one line of nft's
// output.
func (home *HomeNet) Rules(t testing.TB) []string {
	t.Helper()
	list := home.Router.Exec(t, "nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd")
	var rules []string
	for line := range strings.Lines(list) {
		if strings.Contains(line, "dnat") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}

// Pinholes returns the current pinholes of the router's IPv6 firewall. Each is one line
// of nft's output.
func (home *HomeNet) Pinholes(t testing.TB) []string {
	t.Helper()
	list := home.Router.Exec(t, "nft", "list", "chain", "inet", "filter", "miniupnpd")
	var rules []string
	for line := range strings.Lines(list) {
		if strings.Contains(line, "@nh,192,128") { // the destination in the IPv6 header
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return rules
}
