package lab

import (
	"net/netip"
	"testing"
)

// Uplink describes a second connection of the host in the home to the internet.
type Uplink struct {
	// Addr is the address of Lan on its interface eth1. Zero: 192.168.88.2/24. The router of
	// the uplink has the address before it.
	Addr netip.Prefix
	// Untranslated makes the router forward the packets without translation of addresses.
	Untranslated bool
	// Guest connects eth1 to the home's own router instead of another one, as a guest network.
	Guest bool
}

const (
	uplinkLAN6     = "2a0c:8888:1::2/64"
	uplinkRouter6  = "2a0c:8888:1::1/64"
	uplinkWAN      = "46.46.46.1/24"
	uplinkWAN6     = "2a0c:8888:2::1/64"
	uplinkOutside  = "46.46.46.2/24"
	uplinkOutside6 = "2a0c:8888:2::2/64"
)

// uplinkRuleset translates all addresses.
const uplinkRuleset = `table inet filter {
	chain postrouting {
		type nat hook postrouting priority 100;
		oifname "wan0" masquerade
	}
}
`

// SecondUplink connects Lan to the internet a second time, by its interface eth1. Its default
// route is used only by sockets that are bound to eth1. Wan is the internet: it forwards packets
// between the two networks. The router of the uplink, with the interfaces lan0 and wan0, is
// returned. It has the addresses 46.46.46.1 and, with Router.IPv6, 2a0c:8888:2::1. The home must
// have Router.IPv6.
func (home *HomeNet) SecondUplink(t testing.TB, u Uplink) (router *Host) {
	t.Helper()
	l := home.lab
	if !u.Addr.IsValid() {
		u.Addr = netip.MustParsePrefix("192.168.88.2/24")
	}
	home.Lan.Sysctl(t, "net.ipv4.ping_group_range", "0 0") // as on most systems, ICMP echo requires no privileges
	gateway := u.Addr.Addr().Prev()
	gatewayPrefix := netip.PrefixFrom(gateway, u.Addr.Bits()).String()
	outside, outside6 := netip.MustParsePrefix(uplinkOutside).Addr().String(), netip.MustParsePrefix(uplinkOutside6).Addr().String()
	home.Router.Exec(t, "ip", "route", "add", "default", "via", home.Wan.Addr().String())
	home.Router.Exec(t, "ip", "-6", "route", "add", "default", "via", netip.MustParsePrefix(outsideAddr6).Addr().String())
	if u.Guest {
		l.Connect(home.Lan.Port("eth1", u.Addr.String()), home.Router.Port("guest0", gatewayPrefix))
		home.Router.Nft(t, `add rule inet filter forward iifname "guest0" oifname "wan0" accept`)
		home.Lan.Exec(t, "ip", "route", "add", "default", "via", gateway.String(), "dev", "eth1", "metric", "4096")
		return home.Router
	}
	router = l.Host("uplink")
	l.Connect(home.Lan.Port("eth1", u.Addr.String(), uplinkLAN6), router.Port("lan0", gatewayPrefix, uplinkRouter6))
	l.Connect(router.Port("wan0", uplinkWAN, uplinkWAN6), home.Wan.Port("eth1", uplinkOutside, uplinkOutside6))
	for _, h := range []*Host{router, home.Wan} {
		h.Sysctl(t, "net.ipv4.ip_forward", "1")
		h.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	}
	router.Exec(t, "ip", "route", "add", "default", "via", outside)
	router.Exec(t, "ip", "-6", "route", "add", "default", "via", outside6)
	if u.Untranslated {
		home.Wan.Exec(t, "ip", "route", "add", u.Addr.Masked().String(), "via", netip.MustParsePrefix(uplinkWAN).Addr().String())
	} else {
		router.Nft(t, uplinkRuleset)
	}
	home.Wan.Exec(t, "ip", "-6", "route", "add", netip.MustParsePrefix(uplinkLAN6).Masked().String(), "via", netip.MustParsePrefix(uplinkWAN6).Addr().String())
	home.Lan.Exec(t, "ip", "route", "add", "default", "via", gateway.String(), "dev", "eth1", "metric", "4096")
	home.Lan.Exec(t, "ip", "-6", "route", "add", "default", "via", netip.MustParsePrefix(uplinkRouter6).Addr().String(), "dev", "eth1", "metric", "4096")
	return router
}
