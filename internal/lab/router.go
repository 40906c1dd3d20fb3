package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Router configures the router of a home. The zero value supports NAT-PMP, PCP and UPnP
// IGD:2 and has a public address.
type Router struct {
	// WAN is the router's external address. The host outside has the next address. Zero:
	// 45.45.45.1/24. Avoid reserved ranges: miniupnpd regards private, carrier-grade NAT
	// and documentation addresses as double NAT and refuses to map.
	WAN netip.Prefix

	// IPv6 gives global addresses to the router, to the host in the home and to the host
	// outside. The router forwards all traffic from the home, and traffic to the home if
	// a pinhole allows it.
	IPv6 bool

	NoNATPMP bool // packets of version 0 are dropped on port 5351
	NoPCP    bool // packets of all other versions are dropped on port 5351
	NoUPnP   bool // enable_upnp=no

	Refuse5351 bool // port 5351 responds with ICMP port unreachable
	Silent5351 bool // port 5351 does not respond

	// DaemonUptime makes the epoch start at 0 with the daemon. If it is false, the epoch
	// is the uptime of the machine and survives a restart (system_uptime).
	DaemonUptime bool

	// MinLifetime is the shortest lifetime that PCP grants, in whole seconds. Zero: 5 s.
	MinLifetime time.Duration

	// AnyClient lets a host create and delete mappings for other hosts by UPnP
	// (secure_mode=no).
	AnyClient bool

	// DenyLowPorts refuses external ports below 1024. If the protocol allows it, the
	// daemon grants another port instead.
	DenyLowPorts bool

	// ExtraConf are additional lines for miniupnpd.conf, for example
	// "ext_ip=45.45.45.99".
	ExtraConf []string

	lan netip.Prefix // the address of lan0; zero: gatewayAddr
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

// lanPrefix returns the router's address in the home.
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

// outsideHostPrefix returns the address of the host on the router's external network.
func (r Router) outsideHostPrefix() netip.Prefix {
	return netip.PrefixFrom(r.wanPrefix().Addr().Next(), r.wanPrefix().Bits())
}

// conf returns the configuration file of miniupnpd. Each daemon needs its own UUID to
// share a network with another one.
func (r Router) conf(uuid string) string {
	lifetime := cmp.Or(r.MinLifetime, 5*time.Second)
	lines := []string{
		"ext_ifname=wan0",
		"listening_ip=lan0",
		fmt.Sprintf("http_port=%d", upnpHTTPPort),
		"enable_natpmp=yes", // this enables PCP too
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

// ruleset is the router's firewall. It forwards traffic from the home, and the traffic
// that miniupnpd allows.
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

// rule is a rule and the hook to which it is added.
type rule struct{ hook, text string }

// rules returns the rules for a router that supports fewer protocols than miniupnpd,
// which has only one switch for NAT-PMP and PCP. The first byte of a packet is the
// version in both protocols, and 0 means NAT-PMP. The rules also drop the announcements
// of a disabled protocol.
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
