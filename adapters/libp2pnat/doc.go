// Package libp2pnat makes a libp2p host reachable from behind a NAT. It provides a NATManager
// that forwards the ports of the host's listeners with goforward.
//
//	f, err := forward.New(nil) // or with a Config
//	defer f.Close()
//	host, err := libp2p.New(libp2p.NATManager(libp2pnat.New(f)))
//
// Use it instead of the option libp2p.NATPortMap, not in addition. With New(nil), the
// NATManager creates a Forwarder of its own.
//
// # Forwarded ports
//
// The NATManager forwards each TCP and UDP port that the host listens on over IPv4, as long as
// it listens. There is one mapping for a port, even if several transports share it, for
// example QUIC, WebTransport and WebRTC. Loopback and link-local addresses are ignored. If a
// listener is bound to one address of this host, its port is forwarded to that address, or not
// at all.
//
// The mappings are requested in the background, and retried without a limit. A gateway that
// appears later is therefore used too, and a gateway that restarts receives the requests
// again. The Forwarder reports progress and errors to Config.Logger and Config.OnEvent.
//
// The NATManager ignores IPv6 listeners: IPv6 needs no translation, and libp2p announces this
// host's own address. If the gateway has an IPv6 firewall, open a pinhole separately:
//
//	m, err := f.Enable(ctx, forward.UDP(4001), forward.IPv6(), forward.Background())
//
// # Announced addresses
//
// The host's Addrs contain the granted external address and port, once for every address that
// listens on the port. The external port is the same as the internal port if it is free, and
// another one otherwise. No other option is needed: libp2p announces these addresses with and
// without AutoNAT. There are two exceptions. libp2p does not announce an address that AutoNAT
// v2 found unreachable. It announces none of them if AutoNAT found the host private and the
// host has relay addresses; libp2p.ForceReachabilityPublic prevents this second case. An
// AddrsFactory that returns its own addresses must include the addresses that it receives.
//
// libp2p checks for changes when a listener opens or closes, and every five seconds. A changed
// address therefore appears in Addrs and in event.EvtLocalAddressesUpdated up to five seconds
// later, and peers are notified then. The first check after a listener has opened waits up to
// 400 ms for the gateway. If the gateway supports NAT-PMP or PCP, the host therefore has its
// external addresses when libp2p.New returns.
package libp2pnat
