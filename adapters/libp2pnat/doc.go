// Package libp2pnat makes a libp2p host reachable behind a NAT: a NATManager
// that forwards the ports of its listeners by goforward.
//
//	f, err := forward.New(nil) // or with a Config
//	defer f.Close()
//	host, err := libp2p.New(libp2p.NATManager(libp2pnat.New(f)))
//
// It takes the place of libp2p.NATPortMap, which is to be left out. New(nil)
// has a Forwarder of its own.
//
// # What is forwarded
//
// Each TCP and UDP port that the host listens on over IPv4 is forwarded while it
// listens: one mapping, whatever shares the port, such as QUIC, WebTransport and
// WebRTC. Loopback and link-local addresses are passed over. A listener on one
// address of this host is forwarded to that address, or not at all.
//
// The gateway is asked in the background, and for ever: one that appears later
// is used too, and one that restarts is asked again. Config.Logger and
// Config.OnEvent of the Forwarder tell how it goes.
//
// IPv6 listeners are left alone: nothing is translated there, and libp2p announces
// this host's own address. Where the gateway has a firewall, open it beside:
//
//	m, err := f.Enable(ctx, forward.UDP(4001), forward.IPv6(), forward.Background())
//
// # What is announced
//
// The host's Addrs contain the external address and port that were granted, for
// every address that listens on the port. The external port is the
// internal one if it is free, and another one otherwise. Nothing else has to be set:
// libp2p announces it whether AutoNAT is on or off, unless AutoNAT v2 has found
// it unreachable, or AutoNAT that the host is private while it has addresses on
// relays (libp2p.ForceReachabilityPublic forbids that). An AddrsFactory that
// returns addresses of its own has to pass these on.
//
// libp2p looks for changes when a listener opens or closes, and every five
// seconds: it is that late that a changed address appears in Addrs and in
// event.EvtLocalAddressesUpdated, and that peers are told. The first look after
// a listener has opened waits for the gateway for 400 ms, so that a host behind
// one that speaks NAT-PMP or PCP has its external addresses when libp2p.New
// returns.
package libp2pnat
