package proof

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// port is the port that the servers listen on.
const port = 30303

// TestDialNodeURL checks that a peer outside reaches the server by the URL of its node record,
// and that the server deletes its mappings when it stops.
func TestDialNodeURL(t *testing.T) {
	t.Parallel()
	for backend, router := range map[string]lab.Router{
		"natpmp": {},
		"pcp":    {NoNATPMP: true, NoUPnP: true},
		"upnp":   {NoNATPMP: true, NoPCP: true},
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "geth: a peer outside dials the enode URL, "+backend)
			home := lab.Home(t, router)
			inside := start(t, home.Lan, nodeConfig{Inside: true, OwnForwarder: backend == "natpmp"})
			outside := start(t, home.Wan, nodeConfig{})
			self := inside.waitRecord(home, 1, func(m message) bool { return m.Endpoint.Port() == port })
			if at := fmt.Sprintf("@%v:%d", home.External, port); !strings.Contains(self.Node, at) {
				t.Errorf("the URL is %s, want one that contains %s", self.Node, at)
			}
			connect(t, outside, inside, self.Node)
			inside.request("stop", "")
			wantRules(t, home, 0)
			inside.exit()
			outside.exit()
		})
	}
}

// TestDialGrantedPorts maps the server's ports to another host. The node record must have the
// ports that the router grants instead, for TCP and for discovery.
func TestDialGrantedPorts(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "geth: the ports are taken, and a peer outside dials those that are granted")
	home := lab.Home(t, lab.Router{})
	neighbour := home.Join("neighbour", "192.168.77.3/24")
	var echoes []lab.Echo
	for _, network := range []string{"tcp", "udp"} {
		mapWithNatpmpc(t, home, neighbour, network)
		echoes = append(echoes, neighbour.Echo(t, network, ":80"))
	}
	inside := startWithDiscovery(t, home)
	outside := start(t, home.Wan, nodeConfig{Discovery: true})
	self := inside.waitRecord(home, 4, func(m message) bool { return m.Endpoint.Port() != port && m.UDP != port })
	at := fmt.Sprintf("@%v", self.Endpoint)
	if self.UDP != self.Endpoint.Port() {
		at += fmt.Sprintf("?discport=%d", self.UDP)
	}
	if !strings.HasSuffix(self.Node, at) {
		t.Errorf("the URL is %s, want one that ends in %s", self.Node, at)
	}
	outside.request("ping", self.Node)
	connect(t, outside, inside, self.Node)
	inside.request("stop", "")
	wantRules(t, home, 2)
	for _, echo := range echoes {
		home.Reaches(t, echo, netip.AddrPortFrom(home.External, port))
	}
	inside.exit()
	outside.exit()
}

// mapWithNatpmpc maps the servers' port to port 80 of a host with Debian's natpmpc. It
// retries, because natpmpc may mistake a late response to its first request for the response
// to its second one.
func mapWithNatpmpc(t *testing.T, home *lab.HomeNet, host *lab.Host, network string) {
	t.Helper()
	var out string
	for range 5 {
		out = host.Exec(t, "natpmpc", "-g", home.Gateway.String(), "-a", strconv.Itoa(port), "80", network, "600")
		if strings.Contains(out, fmt.Sprintf("Mapped public port %d ", port)) {
			return
		}
	}
	t.Fatalf("natpmpc: %s", out)
}

// TestDialAfterRouterRestart checks that the NAT restores the mappings after the router
// restarts. It does so long before the server's next request.
func TestDialAfterRouterRestart(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "geth: the router restarts, and other peers find the server at its port")
	home := lab.Home(t, lab.Router{})
	inside := startWithDiscovery(t, home)
	first := start(t, home.Wan, nodeConfig{Discovery: true})
	self := inside.waitRecord(home, 2, func(m message) bool { return m.Endpoint.Port() == port })
	connect(t, first, inside, self.Node)
	first.request("stop", "")
	first.exit()
	waitUntil(t, "the first peer is still connected", func() bool { return inside.request("peers", "").Peers == 0 })

	home.Daemon.Kill(t)
	home.Daemon.Forget(t)
	wantRules(t, home, 0)
	home.Daemon.Start(t)
	waitUntil(t, "the mappings are not restored", func() bool { return len(home.Rules(t)) == 2 })
	// The second peer has another address, because the server rejects a second connection from
	// one address within half a minute.
	second := start(t, home.JoinOutside("second", "45.45.45.3/24"), nodeConfig{Discovery: true})
	second.request("ping", self.Node)
	connect(t, second, inside, self.Node)
	inside.request("stop", "")
	wantRules(t, home, 0)
	inside.exit()
	second.exit()
}
