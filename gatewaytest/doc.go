// Package gatewaytest is an in-process router for tests: it speaks port-mapping
// protocols, forwards real bytes, and fails on request. It is to port mapping
// what httptest is to HTTP.
//
//	gw := gatewaytest.New(t, gatewaytest.Config{})          // on loopback, any port, no root
//	f, err := forward.New(gw.Config())                      // what is under test uses that gateway
//	m, err := f.Enable(ctx, forward.TCP(8080))
//	conn, err := gw.Dial(ctx, "tcp", m.External().String()) // a host on the internet connects
//
// The directory examples/testing of the repository has a program that is tested so.
// [Start] is for programs that are not tests.
//
// # Inside and outside
//
// The inside is real. The gateway answers on UDP sockets ([Gateway.Addr],
// [Gateway.SSDP]) and over HTTP ([Device.DescriptionURL]). A mapping's internal endpoint
// is the address that the request came from, or a third party's, with the port that the
// request named. The outside is virtual: the external address ([Gateway.External]) and
// the addresses of outside hosts exist only in [Gateway.Dial] and [Gateway.ListenPacket],
// whose bytes go to the internal endpoint over real sockets. A listener there sees an
// address of this host as its peer, never the virtual one.
//
// Without a mapping, new TCP connections and datagrams from outside do not get in.
// TCP connections that are established outlive the mapping. Answers always get out.
//
// With [Config.Listen6] the gateway is an IPv6 firewall as well. It translates nothing:
// Dial takes the host's own address, and a pinhole lets the bytes through.
//
// # Announcements
//
// [Gateway.Restart] and [Gateway.SetExternal] announce the gateway, as routers do. By
// default the announcements go to loopback addresses that the gateway chooses,
// [Gateway.AnnounceAddr] and [Gateway.NotifyAddr], and nothing joins a multicast group.
// A program under test that is told of them hears its gateway and no other.
//
// # Time
//
// Lifetimes and the epoch run on the gateway's own clock, which [Gateway.Advance]
// moves. With [Config.ManualClock] nothing else moves it. The delays of faults and the
// gaps between announcements are real time.
//
// # Protocols
//
// [Config.Protocols] names the protocols that the gateway speaks. NAT-PMP, RFC 6886, and
// PCP, RFC 6887, with RFC 7220's descriptions, answer on one port. UPnP has other ports:
// for SSDP, and for the description and the actions of WANIPConnection 1 and 2,
// WANPPPConnection:1 and WANIPv6FirewallControl:1.
//
// All have one table: what one protocol maps is taken for the others. NAT-PMP can neither
// shorten nor delete what has a PCP nonce. UPnP lists all IPv4 mappings, and deletes those
// of the same host that have no nonce, but overwrites only its own. The others neither
// renew nor delete UPnP's. PCP maps any protocol; the gateway relays bytes of TCP and UDP.
//
// The gateway does not have PCP's PORT_SET and authentication, nor UPnP's events, service
// descriptions (their URLs are 404, as with many routers) and device protection.
//
// # Faults and quirks
//
// A [Fault] makes chosen requests fail. [Config.Quirks] makes the gateway differ from the
// standards all the time, in the ways of real routers: see package
// [github.com/natforward/goforward/gatewaytest/quirks].
package gatewaytest
