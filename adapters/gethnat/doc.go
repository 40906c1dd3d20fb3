// Package gethnat makes go-ethereum's p2p.Server reachable from behind a NAT. [NAT]
// implements nat.Interface: it maps ports by NAT-PMP, PCP or UPnP, depending on the
// gateway, and renews the mappings.
//
//	srv := &p2p.Server{Config: p2p.Config{
//		PrivateKey: key, MaxPeers: 50, ListenAddr: ":30303",
//		NAT: gethnat.New(nil),
//	}}
//
// The package imports nothing from go-ethereum; [NAT] has the methods of nat.Interface
// and encoding.TextMarshaler.
//
// # What the server announces
//
// The server requests a mapping for TCP and, with discovery, for UDP. It suggests its
// listening port as the external port, and puts the granted port into its node record. If
// the suggested port is in use, the gateway grants another one. The server repeats the
// request every eight minutes, and at once if the external address changed or is
// unavailable. The NAT then sends nothing and returns the current port: it has renewed
// the mapping meanwhile, and restored it if the gateway lost it. The server polls the
// external address every two minutes, which is one request to the gateway.
//
// # What happens on refusal
//
// AddMapping fails with the error of the gateway, and the NAT holds no mapping. The server logs
// the error at debug level, keeps its listening port in the record, and repeats the
// request after five minutes. If a granted mapping is lost, for example because the
// gateway is down, the NAT retries in the background until the mapping is restored.
// Meanwhile the server keeps its port in the record. After six failed calls it deletes the
// mapping and starts again.
//
// ExternalIP fails if the external address is behind another NAT, in private or carrier
// NAT space. No peer could use such an address, and the server would prefer it to the
// address that its peers report.
//
// # Limitations
//
//   - The --nat flag of the geth program cannot select this package: its values are fixed.
//     The package is for programs that make their own p2p.Config.
//   - A new external port is in the node record after the server's next request, up to
//     eight minutes later.
//   - The server requests no mapping for a socket that is bound to a private or loopback
//     address. Let it listen on all addresses, as in ":30303".
//   - A server that stops while the gateway is down waits for it: for each mapping the
//     CloseTimeout of the Forwarder's Config, by default two seconds.
//   - The NAT makes IPv4 mappings only, unless the Config of its Forwarder names a gateway
//     with an IPv6 address.
package gethnat
