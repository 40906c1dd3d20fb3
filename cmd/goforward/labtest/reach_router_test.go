package labtest

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/lab"
	"github.com/natforward/goforward/reach"
)

// measurement is what the program of TestRouterProber measures, and sends back.
type measurement struct {
	Protocol string
	Internal netip.AddrPort
	Gateway  netip.Addr
	URL      string
	Occupied bool // another socket has the port

	Owner, Verdict, Level, Detail, Err string
	Inferred                           bool
	From, To                           netip.AddrPort
	Took, RTT                          time.Duration
}

var routerProber = lab.Func("router prober", func(p *lab.Proc) {
	for {
		var m measurement
		p.Receive(&m)
		t := reach.Target{Protocol: backends.TCP, Internal: m.Internal, Gateway: m.Gateway, Interface: "eth0", UPnPURL: m.URL}
		if m.Protocol == "udp" {
			t.Protocol = backends.UDP
		}
		ctx := context.Background()
		var other io.Closer // a socket that does not belong to the catcher
		if m.Occupied {
			var err error
			if t.Protocol == backends.UDP {
				other, err = net.ListenPacket("udp", t.Internal.String())
			} else {
				other, err = net.Listen("tcp", t.Internal.String())
			}
			if err != nil {
				p.Fatal(err)
			}
		}
		port, err := reach.Open(ctx, t)
		if err != nil {
			p.Fatal(err)
		}
		var catcher reach.Catcher = port
		if port.Owner() == reach.OwnerTemporary {
			catcher = programPort{port}
		}
		begun := time.Now()
		e, err := reach.Router().Probe(ctx, t, catcher)
		m.Took = time.Since(begun)
		m.Owner = []string{"none", "program", "temporary", "other"}[port.Owner()]
		m.Verdict, m.Level, m.Detail, m.Inferred = e.Verdict.String(), e.Level.String(), e.Detail, e.Inferred
		m.From, m.To, m.RTT = e.From, e.To, e.RTT
		if err != nil {
			m.Err = err.Error()
		}
		port.Close()
		if other != nil {
			_ = other.Close()
		}
		p.Send(m)
	}
})

// programPort is a Port that stands for the socket of a program. If no program has the port, a
// connection that does not arrive shows nothing.
type programPort struct{ *reach.Port }

// Owner returns OwnerProgram.
func (programPort) Owner() reach.Owner { return reach.OwnerProgram }

// statefulFirewall is the usual firewall of a host: it admits only what the host has asked for.
const statefulFirewall = `table inet host {
	chain input {
		type filter hook input priority 0; policy drop;
		iif lo accept
		ct state established,related accept
		meta l4proto ipv6-icmp accept
	}
}`

// TestRouterProber checks that the router connects to this host, and that the firewall of this
// host is noticed.
func TestRouterProber(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"tcp", "udp"} {
		for _, way := range []string{"IPv4", "IPv6", "IPv6, a link-local gateway"} {
			if way != "IPv4" && protocol == "udp" && !longChecks {
				continue
			}
			t.Run(protocol+", "+way, func(t *testing.T) {
				t.Parallel()
				lab.Scenario(t, "reach: the router connects to this host, "+protocol+", "+way)
				home := lab.Home(t, lab.Router{IPv6: way != "IPv4"})
				m := measurement{Protocol: protocol, Internal: netip.AddrPortFrom(home.Lan.Addr(), 8080), Gateway: home.Gateway}
				if way != "IPv4" {
					m.Internal, m.Gateway = lanAddr6(home, 8080), home.Gateway6
				}
				if strings.HasSuffix(way, "link-local gateway") {
					m.Gateway = routeViaLinkLocal(t, home).WithZone("eth0")
				}
				// Other interfaces must not get the searches.
				home.Lan.Exec(t, "sh", "-ec", `ip link add other type veth peer name other2
					ip addr add 10.88.0.1/24 dev other
					ip link set other up; ip link set other2 up
					ip route add 224.0.0.0/4 dev other`)
				program := home.Lan.Start(t, routerProber, "")
				measure := func(m measurement) (result measurement) {
					program.Send(m)
					program.Expect(&result)
					t.Logf("%+v", result)
					return result
				}
				for _, occupied := range []bool{false, true} {
					m.Occupied = occupied
					if got := measure(m); got.Verdict != "reachable" || got.Level != "lan" || got.Inferred != occupied ||
						got.To.Addr() != m.Internal.Addr() || (got.To == m.Internal) == occupied || !got.From.IsValid() || got.Err != "" {
						t.Errorf("%+v", got)
					}
				}
				home.Lan.Nft(t, statefulFirewall)
				if strings.HasSuffix(way, "link-local gateway") {
					// The router answers a search from another address, and the firewall drops the answer.
					m.Occupied = false
					if got := measure(m); got.Verdict != "unknown" || !strings.Contains(got.Err, "no answer to UPnP searches arrived") {
						t.Errorf("%+v", got)
					}
					m.URL = "http://" + home.Gateway.String() + ":5000/rootDesc.xml"
				}
				for _, occupied := range []bool{false, true} {
					m.Occupied = occupied
					want, reason := "unreachable", "this host's firewall probably drops"
					if occupied || protocol == "udp" {
						want = "unknown"
					}
					if protocol == "udp" && m.URL != "" {
						reason = "no answer to UPnP searches arrived"
					}
					got := measure(m)
					if got.Verdict != want || (got.Err == "") != (want == "unreachable") || got.From.IsValid() ||
						!strings.Contains(got.Detail+got.Err, reason) {
						t.Errorf("%+v", got)
					}
				}
			})
		}
	}
}
