package cli

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/backends/natpmp"
	"github.com/natforward/goforward/backends/pcp"
	"github.com/natforward/goforward/backends/upnp"
	"github.com/natforward/goforward/discover"
	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// hintCase is a command line that fails, and its last line.
type hintCase struct {
	name    string
	gateway gatewaytest.Config
	prepare func(*gatewaytest.Gateway)
	change  func(*app)
	args    string // GW, IGD and SELF are replaced
	code    int
	want    string // the last line without the arrow
}

func supports(names ...string) gatewaytest.Config { return gatewaytest.Config{Protocols: names} }

// withQuirks returns a gateway with one protocol and quirks.
func withQuirks(name string, q quirks.Quirks) gatewaytest.Config {
	return gatewaytest.Config{Protocols: []string{name}, Quirks: q}
}

// refuse makes the gateway refuse mappings with a code.
func refuse(code int) func(*gatewaytest.Gateway) {
	return func(gw *gatewaytest.Gateway) {
		gw.Inject(gatewaytest.Fault{Result: code, Match: func(q gatewaytest.Request) bool { return q.Op == "map" }})
	}
}

// silent drops the requests of some kinds, or all.
func silent(ops ...string) func(*gatewaytest.Gateway) {
	return func(gw *gatewaytest.Gateway) {
		gw.Inject(gatewaytest.Fault{Drop: true, Match: func(q gatewaytest.Request) bool { return len(ops) == 0 || slices.Contains(ops, q.Op) }})
	}
}

// occupied makes another host have external port 80.
func occupied(gw *gatewaytest.Gateway) {
	_ = gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 80), Internal: netip.MustParseAddrPort("192.0.2.9:80"),
	})
}

// ours adds a mapping of this host.
func ours(gw *gatewaytest.Gateway) {
	_ = gw.AddMapping(gatewaytest.Entry{
		Protocol: backends.TCP, External: netip.AddrPortFrom(gw.External(), 9000), Internal: netip.MustParseAddrPort("127.0.0.1:9000"),
	})
}

// takenQuirk is a UPnP device on which every external port is taken.
var takenQuirk = withQuirks("upnp", quirks.Quirks{UPnP: quirks.UPnP{Actions: quirks.Actions{
	Fault: map[string]int{"AddPortMapping": int(upnp.ConflictInMappingEntry), "AddAnyPortMapping": int(upnp.ConflictInMappingEntry)},
}}})

// full returns a gateway with room for one mapping, which another host has.
func full(name string) gatewaytest.Config {
	return gatewaytest.Config{Protocols: []string{name}, TableLimit: 1}
}

func down(gw *gatewaytest.Gateway) { gw.Down() }

// behind makes the route to the gateway lead over another router.
func behind(a *app) {
	a.routeTo = func(netip.Addr) (discover.Gateway, error) {
		return discover.Gateway{Addr: netip.MustParseAddr("192.0.2.1")}, nil
	}
}

const (
	settingsHint = "allow port forwarding for this device in the gateway's settings"
	natHint      = "another NAT is between the gateway and the internet: switch that router to bridge mode, forward the port on it too, or ask the provider for a public address"
	lowHint      = "request an external port from 1024 on, because many gateways refuse lower ones; or allow this port for this device in the gateway's settings"
	helpHint     = "goforward map --help"
)

var natpmpOnly, pcpOnly, upnpOnly, all = supports("natpmp"), supports("pcp"), supports("upnp"), supports("natpmp", "pcp", "upnp")

var private = netip.MustParseAddr("10.66.66.1")

// hintCases are the situations in which a gateway is reachable, or nothing is sent.
var hintCases = []hintCase{
	// The gateway refuses.
	{"refused", natpmpOnly, refuse(int(natpmp.NotAuthorized)), nil, "map 9000 -g GW", 4, settingsHint},
	{"high external port refused", natpmpOnly, refuse(int(natpmp.NotAuthorized)), nil, "map 9001:9000 --exact -g GW", 4, settingsHint},
	{"low external port refused", natpmpOnly, refuse(int(natpmp.NotAuthorized)), nil, "map 80:9000 --exact -g GW", 4, lowHint},
	{"low ports refused", withQuirks("upnp", quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{LowPorts: int(upnp.ActionNotAuthorized)}}}), nil, nil, "map 443 --exact --igd-url IGD", 4, lowHint},
	{"low internal port refused", natpmpOnly, refuse(int(natpmp.NotAuthorized)), nil, "map 9000:80 -g GW", 4, settingsHint + ", or use an internal port from 1024 on: some gateways refuse lower ones"},
	{"other host refused", upnpOnly, nil, nil, "map 9000 --to 192.0.2.9 --igd-url IGD", 4, "request the mapping on that host itself, or allow mappings for other hosts in the gateway's settings"},
	{"peer refused", pcpOnly, refuse(int(pcp.NotAuthorized)), nil, "map 9000 --from 198.51.100.7 -g GW", 4, "omit --from, and admit only this peer in this host's firewall; or " + settingsHint},
	{"UPnP switched off", withQuirks("upnp", quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{SwitchedOff: true}}}), nil, nil, "map 9000 --igd-url IGD", 4, settingsHint},

	// The gateway has no connection, no public address or no room.
	{"no connection", natpmpOnly, refuse(int(natpmp.NetworkFailure)), nil, "map 9000 -g GW", 4, "check the gateway's internet connection; if it works, another NAT is between the gateway and the internet"},
	{"private address", gatewaytest.Config{Protocols: []string{"pcp"}, External: private, Quirks: quirks.Quirks{PCP: quirks.PCP{RefusePrivate: true}}}, nil, nil, "map 9000 -g GW", 4, natHint},
	{"private address, UPnP", gatewaytest.Config{Protocols: []string{"upnp"}, External: private, Quirks: quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{RefusePrivate: true}}}}, nil, nil, "map 9000 --igd-url IGD", 4, natHint},
	{"shared address", gatewaytest.Config{Protocols: []string{"pcp"}, External: netip.MustParseAddr("100.64.0.7"), Quirks: quirks.Quirks{PCP: quirks.PCP{RefusePrivate: true}}}, nil, nil, "map 9000 -g GW", 4, "the provider's NAT is between the gateway and the internet: ask the provider for a public address, or use --ipv6"},
	{"ip without an address", gatewaytest.Config{Protocols: []string{"natpmp"}, External: netip.IPv4Unspecified()}, nil, nil, "ip -g GW", 4, "check the gateway's internet connection; if it works, another NAT is between the gateway and the internet"},
	{"full", full("natpmp"), occupied, nil, "map 9000 -g GW", 4, "remove unused mappings from the gateway, or restart it"},
	{"full, UPnP", full("upnp"), occupied, nil, "map 9000 --igd-url IGD", 4, "goforward list shows the mappings of the gateway, and goforward unmap deletes those that are not needed"},
	{"quota", pcpOnly, refuse(int(pcp.UserExceededQuota)), nil, "map 9000 -g GW", 4, "delete other mappings of this host: the gateway limits their number"},

	// The port is taken.
	{"taken, exact", natpmpOnly, occupied, nil, "map 80:9000 --exact -g GW", 5, "request another external port, or omit --exact: another port is then used"},
	{"taken, exact, UPnP", upnpOnly, occupied, nil, "map 80:9000 --exact --igd-url IGD", 5, "request another external port, or omit --exact; goforward list shows which host has the port"},
	{"all taken", takenQuirk, nil, nil, "map 9000 --igd-url IGD", 5, "request another external port: all that were tried are taken"},
	{"all taken, two protocols", takenQuirk, nil, nil, "map 9000 -p both --igd-url IGD", 5, "request another external port, or a mapping of its own for each protocol and port"},

	// The gateway does not reply.
	{"silent", all, silent(), nil, "map 9000 -g GW --timeout 1", 6, "check that --gateway is the router's address; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
	{"silent, ip", all, silent(), nil, "ip -g GW --timeout 1", 6, "check that --gateway is the router's address; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
	{"silent, list", all, silent(), nil, "list -g GW --timeout 1", 6, "check that --gateway is the router's address; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
	{"silent, unmap", all, silent(), nil, "unmap 9000 -g GW --timeout 1", 6, "check that --gateway is the router's address; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
	{"silent, one backend", all, silent(), nil, "map 9000 -g GW --timeout 1 --backend pcp", 6, "switch on the protocol in the gateway's settings, or omit --backend to try the others too"},
	{"silent, short timeout", all, silent(), nil, "map 9000 -g GW --timeout 50ms", 6, "increase --timeout: a gateway may need a second to reply"},
	{"silent, far", all, silent(), behind, "map 9000 -g GW --timeout 1", 6, "127.0.0.1 is not on a network of this host, and most gateways answer only hosts of their own network: goforward gateways shows the gateways of this host"},
	{"silent after a reply", natpmpOnly, silent("map", "unmap"), nil, "map 9000 -g GW --timeout 1", 6, "try again; if the gateway is slow, increase --timeout"},
	{"closed port", all, down, nil, "map 9000 -g GW", 6, "its port is closed: check that --gateway is the router; if it is, switch on NAT-PMP, PCP or UPnP in its settings"},
	{"closed port, one backend", all, down, nil, "map 9000 -g GW --backend natpmp", 6, "the gateway's port is closed: switch on the protocol in its settings, or omit --backend to try the others too"},
	{"closed port of a device", all, down, nil, "ip --igd-url IGD --backend upnp", 6, "check --igd-url: the device may use another port after a restart; without the URL, it is searched for"},
	{"malformed, one backend", withQuirks("natpmp", quirks.Quirks{}), refuse(99), nil, "map 9000 -g GW --backend natpmp", 1, "omit --backend: another protocol of the gateway may work"},
	{"malformed", natpmpOnly, refuse(99), nil, "map 9000 -g GW", 1, "update the gateway's firmware, or switch on another protocol in its settings"},

	// The gateway or the protocol does not support the request.
	{"VPN gateway", withQuirks("natpmp", quirks.Quirks{NATPMP: quirks.NATPMP{VPN: true}}), nil, nil, "map 9000 -g GW --lifetime 60", 1, "use --same-port: the gateway grants only equal external and internal ports, as those of VPN providers do"},
	{"permanent, NAT-PMP", natpmpOnly, nil, nil, "map 9000 --lifetime forever -g GW", 1, "omit --lifetime forever, or switch on PCP or UPnP in the gateway's settings"},
	{"permanent, only NAT-PMP", all, nil, nil, "map 9000 --lifetime forever --backend natpmp -g GW", 1, "omit --lifetime forever, or add pcp or upnp to --backend"},
	{"SCTP, NAT-PMP", natpmpOnly, nil, nil, "map 9000/sctp -g GW", 1, "use TCP or UDP, or switch on PCP in the gateway's settings"},
	{"SCTP, only UPnP", all, nil, nil, "map 9000/sctp --igd-url IGD --backend upnp", 1, "use TCP or UDP, or add pcp to --backend"},
	{"SCTP without a port", all, nil, nil, "map -p sctp -g GW", 1, "name a port, as in goforward map 5000/sctp"},
	{"peer, NAT-PMP", natpmpOnly, nil, nil, "map 9000 --from 198.51.100.7 -g GW", 1, "omit --from, or switch on PCP or UPnP in the gateway's settings"},
	{"peer, only NAT-PMP", all, nil, nil, "map 9000 --from 198.51.100.7 --backend natpmp -g GW", 1, "omit --from, or add pcp or upnp to --backend"},
	{"peer's port, UPnP", upnpOnly, nil, nil, "map 9000 --from 198.51.100.7:53 --igd-url IGD", 6, "omit --from, or its port, or switch on PCP in the gateway's settings"},
	{"other host, NAT-PMP", natpmpOnly, nil, nil, "map 9000 --to 192.0.2.9 -g GW", 1, "request the mapping on that host itself, or switch on PCP or UPnP in the gateway's settings"},
	{"other host, only NAT-PMP", all, nil, nil, "map 9000 --to 192.0.2.9 --backend natpmp -g GW", 1, "request the mapping on that host itself, or add pcp or upnp to --backend"},
	{"IPv6, only NAT-PMP", all, nil, nil, "map 9000 --backend natpmp -g ::1", 1, "add pcp or upnp to --backend"},

	{"equal ports only, UPnP", withQuirks("upnp", quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{SamePort: true}}}), nil, nil, "map 9001:9000 --exact --igd-url IGD --backend upnp", 1, "request equal external and internal ports, as in goforward map 9000"},
	{"one peer only, UPnP", withQuirks("upnp", quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{SourceNeeded: true}}}), nil, nil, "map 9000 --igd-url IGD --backend upnp", 1, "name the peer with --from: the gateway admits only one"},
	{"any peer only, UPnP", withQuirks("upnp", quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{AnySourceOnly: true}}}), nil, nil, "map 9000 --from 198.51.100.7 --igd-url IGD --backend upnp", 1, "omit --from, or add pcp to --backend"},
	{"NAT before the gateway", withQuirks("pcp", quirks.Quirks{PCP: quirks.PCP{NAT: true}}), nil, nil, "map 9000 -g GW", 4, "another NAT is between this host and the gateway: request the mapping from a host of the gateway's own network, or from the router that is next to this host"},
	{"other host, PCP", pcpOnly, nil, nil, "map 9000 --to 192.0.2.9 -g GW", 1, "request the mapping on that host itself, or switch on UPnP in the gateway's settings"},

	// Other commands.
	{"list without UPnP", natpmpOnly, nil, nil, "list -g GW", 1, "switch on UPnP in the gateway's settings, or look at its web interface"},
	{"list, only NAT-PMP", all, nil, nil, "list -g GW --backend natpmp", 1, "add upnp to --backend: only UPnP lists mappings"},
	{"list not permitted", upnpOnly, func(gw *gatewaytest.Gateway) {
		gw.Inject(gatewaytest.Fault{Result: 606, Match: func(q gatewaytest.Request) bool { return q.Op == "list" }})
	}, nil, "list --igd-url IGD", 4, "allow this device to read the mappings in the gateway's settings, or look at its web interface"},
	{"unmap for another host", natpmpOnly, nil, nil, "unmap 9000 --to 192.0.2.9 -g GW", 1, "switch on UPnP in the gateway's settings, or run goforward unmap on that host"},
	{"unmap not permitted", withQuirks("upnp", quirks.Quirks{UPnP: quirks.UPnP{Rules: quirks.Rules{DeleteFault: int(upnp.ActionNotAuthorized)}}}), ours, nil, "unmap 9000 --igd-url IGD", 4, "delete the mapping in the gateway's settings"},
	{"unmap without a reply", natpmpOnly, silent("unmap"), nil, "unmap 9000 -g GW --timeout 1", 6, "the mapping may still exist: try again; if the gateway is slow, increase --timeout"},
	{"gateways without routes", all, nil, hosts(nil, nil, nil), "gateways", 3, "connect this host to a network, or name the gateway (--gateway)"},

	// Wrong command lines.
	{"no such gateway", all, nil, nil, "map 9000 -g 0.0.0.0", 2, "goforward map --help"},
	{"families", all, nil, nil, "ip -g GW --source ::1", 2, "goforward ip --help"},
	{"argument of list", all, nil, nil, "list x", 2, "goforward list --help"},
	{"misspelled command", all, nil, nil, "mpa 8080", 2, "did you mean goforward map?"},
	{"command with an ending", all, nil, nil, "gateway", 2, "did you mean goforward gateways?"},
	{"no command", all, nil, nil, "8080", 2, "goforward map 8080"},
	{"no command, UDP", all, nil, nil, "--json 80:8080/udp", 2, "goforward map 80:8080/udp"},
	{"another command", all, nil, nil, "icecream", 2, "goforward --help"},
	{"help of a misspelled command", all, nil, nil, "help lits", 2, "did you mean goforward list?"},
	{"misspelled flag", all, nil, nil, "map 8080 --holdd", 2, "did you mean --hold?"},
	{"swapped letters", all, nil, nil, "map 8080 --gatewya 192.0.2.1", 2, "did you mean --gateway?"},
	{"part of a flag", all, nil, nil, "map 8080 --desc x", 2, "did you mean --description?"},
	{"one dash", all, nil, nil, "map 8080 -to 192.0.2.1", 2, "did you mean --to?"},
	{"one dash, starting like help", all, nil, nil, "map 8080 -hold", 2, "did you mean --hold?"},
	{"protocol as a flag", all, nil, nil, "map 8080 --tcp", 2, "did you mean -p tcp?"},
	{"port as a flag", all, nil, nil, "map --port 8080", 2, "ports need no flag: goforward map 8080"},
	{"another flag", all, nil, nil, "map 8080 --icecream", 2, helpHint},
	{"port too large", all, nil, nil, "map 70000 -g GW", 2, "ports are numbers from 1 to 65535"},
	{"port 0", all, nil, nil, "map 0 -g GW", 2, "name a port from 1 to 65535, or none: goforward map uses one that is free"},
	{"unmap port 0", all, nil, nil, "unmap 0 -g GW", 2, "ports are numbers from 1 to 65535"},
	{"negative port", all, nil, nil, "map -1 -g GW", 2, "ports are numbers from 1 to 65535"},
	{"no internal port", all, nil, nil, "map 8080: -g GW", 2, "did you mean goforward map 8080?"},
	{"no external port", all, nil, nil, "unmap :8080/udp -g GW", 2, "did you mean goforward unmap 8080/udp?"},
	{"protocol first", all, nil, nil, "map tcp/8080 -g GW", 2, "did you mean goforward map 8080/tcp?"},
	{"host for --verify after a space", all, nil, nil, "map 8080 --verify ssh:vps -g GW", 2, "did you mean --verify=ssh:vps?"},
	{"phone after a space", all, nil, nil, "map 8080 --verify phone -g GW", 2, "did you mean --verify=phone?"},
	{"URL for --via of map", all, nil, nil, "map 8080 --via http://192.0.2.1:8099 -g GW", 2, "did you mean --verify=http://192.0.2.1:8099?"},
	{"URL without --via", all, nil, nil, "verify 8080 http://192.0.2.1:8099 -g GW", 2, "did you mean --via http://192.0.2.1:8099?"},
	{"another mistake with --via", all, nil, nil, "verify tcp:x --via ssh:vps -g GW", 2, "goforward verify --help"},
	{"lifetime 0", all, nil, nil, "map 8080 -l 0 -g GW", 2, "goforward unmap 8080"},
	{"lifetime 0 without a port", all, nil, nil, "map -g GW -l 0", 2, "goforward unmap deletes a mapping"},
	{"list of two ports", all, nil, nil, "map 8080,8081 -g GW", 2, "separate ports by spaces: goforward map 8080 8081/tcp"},
	{"misspelled topic", all, nil, nil, "help holds", 2, "did you mean goforward help hold?"},
	{"list of ports", all, nil, nil, "map 8080,8081/udp -g GW", 2, "separate ports by spaces: goforward map 8080 8081/udp"},
	{"misspelled protocol", all, nil, nil, "map -g GW 8080/tpc", 2, "did you mean tcp?"},
	{"unmap without a port", all, nil, nil, "unmap -g GW", 2, "goforward unmap --help"},
	{"help of another command", all, nil, nil, "help icecream", 2, "goforward --help"},
	{"two protocols", all, nil, nil, "map 80/tcp -u -g GW", 2, helpHint},
	{"different ports with --same-port", all, nil, nil, "map 80:81 --same-port -g GW", 2, helpHint},
}

// TestHints checks the last line and the exit code of each failure, and that no text names
// what is in the code of the library.
func TestHints(t *testing.T) {
	t.Parallel()
	for _, tt := range hintCases {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.check(t)
		})
	}
}

// TestHintOfFirewall checks the last line if the user permits no pinholes.
func TestHintOfFirewall(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("SKIPPED, NOTHING WAS TESTED: this host has no ::1")
	}
	_ = ln.Close()
	gw := router(t, gatewaytest.Config{
		Protocols: []string{"upnp"}, Listen6: netip.MustParseAddrPort("[::1]:0"),
		Quirks: quirks.Quirks{UPnP: quirks.UPnP{Firewall: quirks.Firewall{NotAllowed: true}}},
	})
	c := hintCase{code: exitRefused, want: "allow incoming IPv6 connections (pinholes) for this device in the gateway's settings"}
	c.checkArgs(t, []string{"map", "9000", "--backend=upnp", "--igd-url=" + gw.UPnP().DescriptionURL6(), "--announce=[::1]:0", "--notify=127.0.0.1:0", "--ssdp=127.0.0.1:0"})
}

// check runs the command line.
func (tt *hintCase) check(t *testing.T) {
	t.Helper()
	gw := router(t, tt.gateway)
	if slices.Equal(tt.gateway.Protocols, []string{"upnp"}) {
		gw.Down("natpmp", "pcp")
	}
	if tt.prepare != nil {
		tt.prepare(gw)
	}
	args := strings.NewReplacer("GW", gw.Addr().String(), "IGD", gw.UPnP().DescriptionURL()).Replace(tt.args)
	tt.checkArgs(t, append(strings.Fields(args), "--announce=127.0.0.1:0", "--notify=127.0.0.1:0", "--ssdp=127.0.0.1:0"))
}

func (tt *hintCase) checkArgs(t *testing.T, args []string) {
	t.Helper()
	r := run(t, tt.change, args...)
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); r.code != tt.code || last != "→ "+tt.want {
		t.Errorf("exit code %d, want %d\nwant → %s\n%s", r.code, tt.code, tt.want, r.stderr)
	}
	if len(lines) == 1 || strings.Count(r.stderr, arrow) != 1 {
		t.Errorf("want an error and one hint:\n%s", r.stderr)
	}
	checkNames(t, r.stderr+r.stdout)
}

// checkNames checks that a text has no names of the library's code, and no address that the
// library uses only for a lookup.
func checkNames(t *testing.T, text string) {
	t.Helper()
	for _, name := range []string{
		"forward.", "forward:\x20", "discover:", "ssdp:", "Config", "SamePort()", "use SamePort", "Lifetime(", "Background", "the option ", "ctx", "context ",
		"198.41.0.4", "2001:503:", "%!", "Did you mean", "{gateway}", "{command}",
	} {
		if strings.Contains(strings.ReplaceAll(text, "goforward: ", ""), name) {
			t.Errorf("%q in the output:\n%s", name, text)
		}
	}
}

// TestLibraryText checks that the names of options, packages and nested protocols are
// replaced.
func TestLibraryText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                         "",
		"forward: closed":          "closed",
		"a: forward: discover: b":  "a: b",
		"forward: invalid request": "invalid request",
		"the gateway refuses:\n  upnp: searching: upnp: no\n  natpmp: no": "the gateway refuses:\n  upnp: searching: no\n  natpmp: no",
		"pcp: map: upnp: natpmp: x":                                       "pcp: map: upnp: natpmp: x",
		"omit the option From, or add pcp to Config.Protocols":            "omit --from, or add pcp to --backend",
	} {
		if got := libraryText(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// TestHintKeepsOthers checks that a hint replaces only the advice of the library.
func TestHintKeepsOthers(t *testing.T) {
	t.Parallel()
	a := newApp(nil, nil)
	a.command = "unmap"
	for _, err := range []error{
		fmt.Errorf("%w\n  → only the user who created it", backends.ErrNotAuthorized),
		fmt.Errorf("%w: %w\n  → wait", errNotUnmapped, &forward.Error{Kind: backends.ErrNoReply, Advice: "try again"}),
	} {
		if got := a.hint(err); got != "" {
			t.Errorf("%v: hint %q", err, got)
		}
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"map", "unmap", "list", "ip", "gateways", "watch"}
	for in, want := range map[string]string{
		"mpa": "map", "mapp": "map", "unmpa": "unmap", "lst": "list", "gate": "gateways", "wacht": "watch",
		"": "", "x": "", "ls": "list", "icecream": "", strings.Repeat("map", 100): "",
	} {
		if got := nearest(in, names); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
