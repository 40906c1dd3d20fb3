// Package gatewaytest is an in-process router for tests: it speaks port-mapping
// protocols, forwards real bytes, and misbehaves on request. It is to port
// mapping what httptest is to HTTP.
//
//	gw, err := gatewaytest.Start(gatewaytest.Config{})                // on loopback, any port, no root
//	m, err := …                                                      // map a port with gw.Addr() as the gateway
//	conn, err := gw.Dial(ctx, "tcp", m.External().String())           // a host on the internet connects
//
// A program that is tested so is examples/testing of the repository.
//
// # Inside and outside
//
// The inside is real: the gateway answers on UDP sockets ([Gateway.Addr],
// [Gateway.SSDP]) and over HTTP ([Gateway.DescriptionURL]), and a mapping's internal endpoint is the address that the request came from, or a
// third party's, with the port it named. The outside is virtual: the external address
// ([Gateway.External]) and the addresses of outside hosts exist only in
// [Gateway.Dial] and [Gateway.ListenPacket], whose bytes go to the internal
// endpoint over real sockets. What listens there therefore sees an address of
// this host as its peer, never the virtual one.
//
// A mapping admits: established TCP connections outlive it, new ones are
// refused once it is gone; every inbound datagram needs it; answers always get out.
//
// With [Config.Listen6] the gateway is an IPv6 firewall as well. It translates
// nothing: a host's own address is what Dial names, and a pinhole lets it through.
//
// # Time
//
// Lifetimes and the epoch run on the gateway's own clock, which [Gateway.Advance]
// moves; with [Config.ManualClock] nothing else does. Fault delays and the
// spacing of announcements are real time.
//
// # Protocols
//
// NAT-PMP, RFC 6886, and PCP, RFC 6887, with RFC 7220's descriptions, answer on
// one port; UPnP has others: SSDP, the description, and the actions of
// WANIPConnection 1 and 2, WANPPPConnection:1 and WANIPv6FirewallControl:1. All
// have one table: a port is taken whoever has it. NAT-PMP can neither shorten nor
// delete what has a PCP nonce. UPnP lists all IPv4 mappings, and deletes those of
// the same host that have no nonce, but overwrites only its own; the others
// neither renew nor delete UPnP's. Any protocol can be mapped, by UPnP TCP and
// UDP; bytes are relayed for these. [Config.Protocols] says which of them the gateway
// speaks.
//
// PCP's PORT_SET and authentication are not there, nor UPnP's events, service
// descriptions (their URLs are 404, as with many routers) and device protection.
//
// # Quirks
//
// [Config.Quirks] has the quirks of real routers, which package
// [github.com/natforward/goforward/gatewaytest/quirks] describes.
//
// What is wrong only once is a [Fault], as with the other protocols. Searches are
// answered where they are sent, [Gateway.SSDP]: nothing joins a multicast group.
// Wrong hosts in descriptions are loopback addresses where nobody listens.
package gatewaytest
