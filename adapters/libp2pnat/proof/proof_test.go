package proof

import (
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// externalPrefix is the prefix of addresses with the router's external address.
const externalPrefix = "/ip4/45.45.45.1/"

// TestReachable checks that a peer outside reaches the host over each transport.
func TestReachable(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]lab.Router{
		"every protocol": {},
		"UPnP only":      {NoNATPMP: true, NoPCP: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "libp2p: a new peer outside is served over TCP, QUIC, WebTransport and WebRTC, "+name)
			home := lab.Home(t, router)
			h := start(t, home, hostArgs{Listen: allListenAddrs})
			t.Logf("after libp2p.New, in %v, the host announces %q", h.info.Took, matching(h.info.Addrs, externalPrefix, ""))
			h.wantReachable(h.waitAnnounced(externalPrefix, "/tcp/4001"))
			h.wantReachable(h.waitAnnounced(externalPrefix, "/udp/4001/quic-v1"))
			h.wantReachable(h.waitAnnounced(externalPrefix, "/udp/4001/quic-v1/webtransport"))
			h.wantReachable(h.waitAnnounced(externalPrefix, "/udp/4001/webrtc-direct"))
			wantRules(t, home, 2)
			h.close(0)
		})
	}
}

// TestRouterRestart simulates a power cut: the router loses its mappings. Only the router's
// announcement after its restart notifies the host.
func TestRouterRestart(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "libp2p: a new peer outside is served after the router has restarted")
	home := lab.Home(t, lab.Router{})
	h := start(t, home, hostArgs{Listen: tcpAndQUIC})
	tcp, quic := h.waitAnnounced(externalPrefix, "/tcp/4001"), h.waitAnnounced(externalPrefix, "/udp/4001/quic-v1")
	h.wantReachable(tcp)
	h.wantReachable(quic)
	home.Daemon.Kill(t)
	home.Daemon.Forget(t)
	wantRules(t, home, 0)
	if got := h.connectNewPeer(tcp, "too early"); got.Failure == "" {
		t.Errorf("a peer without a mapping: %+v, want a failure", got)
	}
	home.Daemon.Start(t)
	h.waitReachable(h.waitAnnounced(externalPrefix, "/tcp/4001"))
	h.waitReachable(h.waitAnnounced(externalPrefix, "/udp/4001/quic-v1"))
	h.close(0)
}

// TestPortsTaken checks that the host announces the granted ports if another host has the
// preferred ones.
func TestPortsTaken(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "libp2p: somebody else has the external ports, those granted are announced")
	home := lab.Home(t, lab.Router{})
	neighbour := home.Join("neighbour", "192.168.77.3/24")
	mapWithNatpmpc(t, home, neighbour, "tcp", "4001")
	mapWithNatpmpc(t, home, neighbour, "udp", "4001")
	h := start(t, home, hostArgs{Listen: tcpAndQUIC})
	tcp, quic := h.waitAnnounced(externalPrefix+"tcp/", ""), h.waitAnnounced(externalPrefix+"udp/", "/quic-v1")
	if strings.HasSuffix(tcp, "/4001") || strings.Contains(quic, "/4001/") {
		t.Errorf("the host announces %s and %s, but another host has these ports", tcp, quic)
	}
	h.wantReachable(tcp)
	h.wantReachable(quic)
	h.close(2)
}

// mapWithNatpmpc maps a port to port 80 of a host with Debian's natpmpc. It retries, because
// natpmpc may mistake a late response to its first request for the response to its second one.
func mapWithNatpmpc(t *testing.T, home *lab.HomeNet, host *lab.Host, network, port string) {
	t.Helper()
	var out string
	for range 5 {
		out = host.Exec(t, "natpmpc", "-g", home.Gateway.String(), "-a", port, "80", network, "600")
		if strings.Contains(out, "Mapped public port "+port+" ") {
			return
		}
	}
	t.Fatalf("natpmpc: %s", out)
}

// TestExternalAddressChanges changes the router's external address, as a provider may do.
// The host must announce the new address only.
func TestExternalAddressChanges(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "libp2p: another external address is announced and works")
	home := lab.Home(t, lab.Router{})
	h := start(t, home, hostArgs{Listen: tcpAndQUIC})
	h.wantReachable(h.waitAnnounced(externalPrefix, "/tcp/4001"))
	home.Router.Exec(t, "sh", "-ec", "ip addr add 45.45.45.77/24 dev wan0; ip addr del 45.45.45.1/24 dev wan0; ip addr show dev wan0 | grep -q 45.45.45.77 || ip addr add 45.45.45.77/24 dev wan0")
	h.wantReachable(h.waitAnnounced("/ip4/45.45.45.77/", "/tcp/4001"))
	h.wantReachable(h.waitAnnounced("/ip4/45.45.45.77/", "/udp/4001/quic-v1"))
	if found := matching(h.addrs(), externalPrefix, ""); len(found) > 0 {
		t.Errorf("the host still announces %q", found)
	}
	h.close(0)
}

// TestRouterStartsLater starts the port mapping daemon of the router after the host.
func TestRouterStartsLater(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "libp2p: the router starts after the host")
	home := lab.Home(t, lab.Router{})
	home.Daemon.Stop(t)
	h := start(t, home, hostArgs{Listen: tcpAndQUIC})
	if found := matching(h.info.Addrs, externalPrefix, ""); len(found) > 0 {
		t.Errorf("the host announces %q without a mapping", found)
	}
	home.Daemon.Start(t)
	h.wantReachable(h.waitAnnounced(externalPrefix, "/tcp/4001"))
	h.wantReachable(h.waitAnnounced(externalPrefix, "/udp/4001/quic-v1"))
	h.close(0)
}

// TestSpecificAddress checks listeners that are bound to one address. Only the listener on the
// address that the router forwards to gets a mapping; the loopback listeners get none. The
// NATManager has its own Forwarder.
func TestSpecificAddress(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "libp2p: a listener on one address is served, one on loopback not mapped")
	home := lab.Home(t, lab.Router{})
	h := start(t, home, hostArgs{OwnForwarder: true, Listen: []string{
		"/ip4/192.168.77.2/tcp/4001", "/ip4/127.0.0.1/tcp/4002", "/ip4/127.0.0.1/udp/4001/quic-v1",
	}})
	h.wantReachable(h.waitAnnounced(externalPrefix, "/tcp/4001"))
	wantRules(t, home, 1)
	if found := matching(h.addrs(), externalPrefix, ""); len(found) != 1 {
		t.Errorf("the host announces %q, want one external address", found)
	}
	h.close(0)
}
