// Package gethnat makes go-ethereum's p2p.Server reachable from behind a NAT:
// it is a nat.Interface that asks the gateway by NAT-PMP, PCP or UPnP,
// whichever it speaks, and keeps alive what it got.
//
//	srv := &p2p.Server{Config: p2p.Config{
//		PrivateKey: key, MaxPeers: 50, ListenAddr: ":30303",
//		NAT: gethnat.New(nil),
//	}}
//
// It imports nothing of go-ethereum; [NAT] has the methods of nat.Interface and
// encoding.TextMarshaler.
//
// # What the server announces
//
// The server asks for TCP and, with discovery, for UDP, each with its listening
// port as the wish, and puts what the gateway grants into its node record: where
// the port is taken, that is another one. Asked again, which it does every eight
// minutes, and at once when the external address has changed or cannot be had,
// the NAT sends nothing and tells the port that is held just now: the mapping has
// been renewed meanwhile, and asked for again wherever the gateway lost it. The
// external address is polled every two minutes: one question to the gateway.
//
// # What happens on refusal
//
// AddMapping fails with what the gateway said, and nothing is held. The server
// writes that to its log at debug level, goes on with its listening port in the
// record, and asks again after five minutes. A mapping that was granted once and
// is lost, because the gateway is away, say, is tried for in the background until
// it is back; the server keeps its port in the record meanwhile, and after six
// calls in vain deletes it and begins anew.
//
// An external address that another NAT stands before, of private or carrier NAT
// space, is an error rather than an address: nobody could use it, and the server
// would believe it rather than what its peers tell it about itself.
//
// # Limitations
//
//   - The --nat flag of the geth program cannot name it: its words are fixed.
//     It is for programs that make their own p2p.Config.
//   - A new external port is in the node record when the server asks next, up to
//     eight minutes later.
//   - The server asks for no mapping of a socket that is bound to a private or
//     loopback address: let it listen on all addresses, as in ":30303".
//   - A server that stops while the gateway is away waits for it: for each mapping
//     the CloseTimeout of the Forwarder's Config, by default two seconds.
//   - What the NAT holds are mappings of IPv4, unless its Forwarder was told of a
//     gateway with an IPv6 address.
package gethnat
