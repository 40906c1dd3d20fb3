// Package gatewaytest provides an in-process router for tests. It implements NAT-PMP,
// PCP and UPnP IGD, forwards real bytes, and fails on request. It is to port mapping
// what httptest is to HTTP.
//
//	gw := gatewaytest.New(t, gatewaytest.Config{})          // on loopback, on free ports, without root
//	f, err := forward.New(gw.Config())                      // the code under test uses that gateway
//	m, err := f.Enable(ctx, forward.TCP(8080))
//	conn, err := gw.Dial(ctx, "tcp", m.External().String()) // a host on the internet connects
//
// The directory examples/testing of the repository contains a program and its tests with
// this package. Programs that are not tests start a gateway with [Start].
//
// # Inside and outside
//
// The inside is real. The gateway receives requests on UDP sockets ([Gateway.Addr],
// [Gateway.SSDP]) and over HTTP ([Device.DescriptionURL]). The internal endpoint of a
// mapping has the address from which the request came, or the address of a third party,
// and the port that the request named.
//
// The outside is virtual. The external address ([Gateway.External]) and the addresses of
// outside hosts exist only in [Gateway.Dial] and [Gateway.ListenPacket]. Their bytes
// travel to the internal endpoint over real sockets. A listener at that endpoint sees an
// address of this host as its peer, never the virtual address.
//
// Without a mapping, the gateway rejects new TCP connections from outside and drops
// datagrams from outside. Established TCP connections outlive their mapping. Replies
// from the inside always reach the outside host.
//
// With [Config.Listen6], the gateway is also an IPv6 firewall. It does not translate
// addresses: Dial takes the IPv6 address of the LAN host, and the bytes pass if a
// pinhole is open.
//
// # Announcements
//
// [Gateway.Restart] and [Gateway.SetExternal] announce the gateway, as routers do. By
// default, the announcements are sent to loopback addresses that the gateway chooses,
// [Gateway.AnnounceAddr] and [Gateway.NotifyAddr]. The gateway joins no multicast group.
// A program under test that listens at these two addresses receives the announcements of
// this gateway only.
//
// # Time
//
// Lifetimes and the epoch are measured on the gateway's own clock. [Gateway.Advance]
// moves that clock. With [Config.ManualClock], only Advance moves it. The delays of
// faults and the intervals between announcements are real time.
//
// # Protocols
//
// [Config.Protocols] lists the protocols that the gateway supports. NAT-PMP (RFC 6886)
// and PCP (RFC 6887, with the descriptions of RFC 7220) share one port. UPnP has ports
// of its own: one for SSDP, and one for the device description and the actions of
// WANIPConnection 1 and 2, WANPPPConnection:1 and WANIPv6FirewallControl:1.
//
// All protocols share one table: a port that one protocol has mapped is taken for the
// others. NAT-PMP can neither shorten nor delete a mapping that has a PCP nonce. UPnP
// lists all IPv4 mappings. It deletes mappings of the same host that have no nonce, but
// overwrites only mappings that UPnP made. NAT-PMP and PCP neither renew nor delete UPnP
// mappings. PCP maps any protocol; the gateway relays bytes of TCP and UDP only.
//
// The gateway implements neither PORT_SET nor authentication of PCP. Of UPnP, it
// implements no events, no service descriptions (their URLs return 404, as on many
// routers) and no device protection.
//
// # Faults and quirks
//
// A [Fault] makes selected requests fail. [Config.Quirks] makes the gateway differ from
// the standards permanently, in the ways in which real routers do: see package
// [github.com/natforward/goforward/gatewaytest/quirks].
package gatewaytest
