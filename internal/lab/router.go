package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Router says what kind of router a home has. Its zero value speaks NAT-PMP,
// PCP and UPnP IGD:2 and has a public address.
type Router struct {
	// WAN is the router's external address; the host outside has the next one.
	// Zero: 45.45.45.1/24. Beware of reserved ranges: miniupnpd takes private,
	// carrier NAT and documentation addresses for double NAT and refuses.
	WAN netip.Prefix

	// IPv6 gives the router, the home's host and the host outside global
	// addresses, which the router forwards between: out, and in where a pinhole
	// stands.
	IPv6 bool

	NoNATPMP bool // version 0 is dropped on port 5351
	NoPCP    bool // all other versions are dropped on port 5351
	NoUPnP   bool // enable_upnp=no

	Refuse5351 bool // ICMP port unreachable instead of NAT-PMP and PCP
	Silent5351 bool // nothing at all instead of NAT-PMP and PCP

	// DaemonUptime makes the epoch restart at 0 with the daemon. False: it is
	// the machine's uptime and survives a restart (system_uptime).
	DaemonUptime bool

	// MinLifetime is the shortest lifetime granted by PCP, in whole seconds.
	// Zero: 5 s.
	MinLifetime time.Duration

	// AnyClient lets a host map and delete for others by UPnP (secure_mode=no).
	AnyClient bool

	// DenyLowPorts refuses external ports below 1024; the daemon grants others
	// instead where the protocol has a way to.
	DenyLowPorts bool

	// ExtraConf are more lines for miniupnpd.conf, such as "ext_ip=45.45.45.99".
	ExtraConf []string

	lan netip.Prefix // of lan0; zero: gatewayAddr
}

const (
	lanAddr      = "192.168.77.2/24"
	gatewayAddr  = "192.168.77.1/24"
	defaultWAN   = "45.45.45.1/24"
	upnpHTTPPort = 5000

	lanAddr6     = "2a0c:7777:1::2/64"
	gatewayAddr6 = "2a0c:7777:1::1/64"
	wanAddr6     = "2a0c:7777:2::1/64"
	outsideAddr6 = "2a0c:7777:2::2/64"
)

// inside is the router's address in the home.
func (r Router) lanPrefix() netip.Prefix {
	if r.lan.IsValid() {
		return r.lan
	}
	return netip.MustParsePrefix(gatewayAddr)
}

func (r Router) wanPrefix() netip.Prefix {
	if r.WAN.IsValid() {
		return r.WAN
	}
	return netip.MustParsePrefix(defaultWAN)
}

// outside is the address of the host that lives on the router's external
// network.
func (r Router) outsideHostPrefix() netip.Prefix {
	return netip.PrefixFrom(r.wanPrefix().Addr().Next(), r.wanPrefix().Bits())
}

// conf is the configuration file of miniupnpd. A daemon with a UUID of its own
// can share a network with another one.
func (r Router) conf(uuid string) string {
	lifetime := cmp.Or(r.MinLifetime, 5*time.Second)
	lines := []string{
		"ext_ifname=wan0",
		"listening_ip=lan0",
		fmt.Sprintf("http_port=%d", upnpHTTPPort),
		"enable_natpmp=yes", // PCP too
		"enable_upnp=" + yesNo(!r.NoUPnP),
		"secure_mode=" + yesNo(!r.AnyClient),
		"system_uptime=" + yesNo(!r.DaemonUptime),
		fmt.Sprintf("min_lifetime=%d", int(lifetime.Seconds())),
		"uuid=" + uuid,
		"upnp_table_name=filter",
		"upnp_nat_table_name=filter",
		"upnp_forward_chain=miniupnpd",
		"upnp_nat_chain=prerouting_miniupnpd",
		"upnp_nat_postrouting_chain=postrouting_miniupnpd",
	}
	lines = append(lines, r.ExtraConf...)
	if r.DenyLowPorts {
		lines = append(lines, "deny 0-1023 0.0.0.0/0 0-65535")
	}
	lines = append(lines, "allow 0-65535 "+r.lanPrefix().Masked().String()+" 0-65535")
	return strings.Join(lines, "\n") + "\n"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// ruleset is the router's firewall: only what comes from inside may pass, and
// what miniupnpd lets in.
const ruleset = `table inet filter {
	chain miniupnpd { }
	chain prerouting_miniupnpd { }
	chain postrouting_miniupnpd { }
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname "lan0" oifname "wan0" accept
		jump miniupnpd
	}
	chain prerouting {
		type nat hook prerouting priority -100;
		jump prerouting_miniupnpd
	}
	chain postrouting {
		type nat hook postrouting priority 100;
		jump postrouting_miniupnpd
		meta nfproto ipv4 oifname "wan0" masquerade
	}
}
`

// rule is a hook and a rule in it.
type rule struct{ hook, text string }

// rules make a router that speaks less than miniupnpd does: one daemon switch
// turns on NAT-PMP and PCP alike. The first byte of both is the version, 0 for
// NAT-PMP. Announcements of a protocol that is off are dropped as well.
func (r Router) rules() []rule {
	const in, out = `iifname "lan0" udp dport 5351`, `oifname "lan0" udp dport { 5350, 5351 }`
	var rules []rule
	if r.Refuse5351 {
		rules = append(rules, rule{"input", in + " reject with icmpx port-unreachable"})
	}
	if r.Silent5351 {
		rules = append(rules, rule{"input", in + " drop"})
	}
	if r.Refuse5351 || r.Silent5351 {
		rules = append(rules, rule{"output", out + " drop"})
	}
	if r.NoNATPMP {
		rules = append(rules, rule{"input", in + " @th,64,8 0 drop"}, rule{"output", out + " @th,64,8 0 drop"})
	}
	if r.NoPCP {
		rules = append(rules, rule{"input", in + " @th,64,8 != 0 drop"}, rule{"output", out + " @th,64,8 != 0 drop"})
	}
	return rules
}
