// Package gatewaytest is an in-process router for tests: it speaks port-mapping
// protocols, forwards real bytes, and misbehaves on request. It is to port
// mapping what httptest is to HTTP.
//
//	gw, err := gatewaytest.Start(gatewaytest.Config{})                // on loopback, any port, no root
//	m, err := …                                                      // map a port with gw.Addr() as the gateway
//	conn, err := gw.Dial(ctx, "tcp", m.External().String())           // a host on the internet connects
//
// # Inside and outside
//
// The inside is real: the gateway answers on a UDP socket ([Gateway.Addr]), and
// a mapping's internal endpoint is the address that the request came from, or a
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
// one port out of one table: a port is taken whoever has it, and NAT-PMP can
// neither shorten nor delete what has a PCP nonce. [Config.NATPMP] and
// [Config.PCP] switch either off, and have the quirks of real routers. Any
// protocol can be mapped, bytes are relayed for TCP and UDP. PCP's PORT_SET and
// authentication are not there.
package gatewaytest
