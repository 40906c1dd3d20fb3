package cli

import (
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// TestHintsOfNetworks checks the last line on hosts with different networks. Nothing answers
// in them.
func TestHintsOfNetworks(t *testing.T) {
	const (
		router = "switch on NAT-PMP, PCP or UPnP in the gateway's settings; behind a VPN or in a container, name the gateway (--gateway)"
		named  = "check that --gateway is the router's address; if it is, switch on NAT-PMP, PCP or UPnP in its settings"
		lan    = `
			link add lan type veth peer name other
			link add off type veth peer name bare
			link set lan up
			link set other up
			link set bare up
			address add 10.9.0.2/24 dev lan
			route add default via 10.9.0.1`
		tunnel = `
			link add tun0 type veth peer name other
			link set tun0 up
			link set other up
			address add 10.9.0.2/32 dev tun0
			route add default dev tun0`
	)
	for name, tt := range map[string]struct {
		network string
		cases   []hintCase
	}{
		"offline": {"", []hintCase{
			{args: "map 8080", code: 3, want: "connect this host to the internet, or name the gateway (--gateway)"},
			{args: "ip", code: 3, want: "connect this host to the internet, or name the gateway (--gateway)"},
			{args: "list", code: 3, want: "connect this host to the internet, or name the gateway (--gateway)"},
			{args: "unmap 8080", code: 3, want: "connect this host to the internet, or name the gateway (--gateway)"},
			{args: "gateways", code: 3, want: "connect this host to a network, or name the gateway (--gateway)"},
			{args: "map 8080 -6", code: 3, want: "this network has no IPv6: omit --ipv6, or connect this host to a network with IPv6"},
			{args: "map 8080 -g 192.0.2.1 --timeout 1", code: 6, want: "this host has no route to 192.0.2.1: connect it to the network of that gateway"},
		}},
		"lan": {lan, []hintCase{
			{args: "map 8080 --timeout 1", code: 3, want: router},
			{args: "map 8080 -g 10.9.0.1 --timeout 1", code: 6, want: named},
			{args: "map 8080 -g 192.0.2.1 --timeout 1", code: 6, want: "192.0.2.1 is not on a network of this host, and most gateways answer only hosts of their own network: goforward gateways shows the gateways of this host"},
			{args: "map 8080 -g 10.9.0.2 --timeout 1", code: 6, want: "10.9.0.2 is an address of this host: name the router; goforward gateways shows the gateways of this host"},
			{args: "map 8080 -6", code: 3, want: "this network has no IPv6: omit --ipv6, or connect this host to a network with IPv6"},
			{args: "map 8080 --interface eth9", code: 2, want: "the interfaces of this host: other, lan, bare and off"},
			{args: "ip --interface eth9 -g 10.9.0.1", code: 2, want: "the interfaces of this host: other, lan, bare and off"},
			{args: "gateways --interface eth9", code: 2, want: "the interfaces of this host: other, lan, bare and off"},
			{args: "map 8080 --interface off", code: 3, want: "switch it on, or use another interface: other, lan and bare"},
			{args: "map 8080 --interface bare", code: 3, want: "connect it to a network, or use another interface: other and lan"},
			{args: "map 8080 --interface lo", code: 3, want: "name the gateway (--gateway), or another interface (--interface)"},
			{args: "gateways --interface lo", code: 3, want: "name the gateway (--gateway), or use another interface: other, lan and bare"},
		}},
		"tunnel": {tunnel, []hintCase{
			{args: "map 8080", code: 3, want: "name the gateway (--gateway): the VPN provider publishes its address"},
			{args: "map 8080 -g 10.2.0.1 --timeout 1", code: 6, want: named},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if !lab.Inside(t) {
				return
			}
			lab.IP(t, "link set lo up"+tt.network)
			for _, c := range tt.cases {
				t.Run(c.args, func(t *testing.T) {
					c.checkArgs(t, strings.Fields(c.args))
				})
			}
		})
	}
}
