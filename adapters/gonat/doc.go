// Package nat has the API of go-nat (github.com/libp2p/go-nat and its fork by netbird). A
// [forward.Forwarder] creates and renews the mappings. To migrate a program from go-nat, only
// change the import path:
//
//	import nat "github.com/natforward/goforward/adapters/gonat"
//
//	gw, err := nat.DiscoverGateway(ctx)
//	port, err := gw.AddPortMapping(ctx, "tcp", 8080, "my program", time.Hour) // the true external port
//	defer gw.DeletePortMapping(ctx, "tcp", 8080)
//
// A program that has a Forwarder already passes it to [New]. New programs do not need this
// package: use package forward.
//
// # Differences from go-nat
//
//   - AddPortMapping returns the external port that the gateway granted.
//   - A mapping is kept until it is deleted, even if the program does not repeat the
//     request. It is renewed at half of its lifetime. It is requested again if the gateway
//     restarts or another gateway replaces it. A program may still repeat the request: while
//     the mapping is active, the Gateway then sends nothing.
//   - DeletePortMapping deletes the mapping on the gateway, with each of the protocols
//     NAT-PMP, PCP and UPnP.
//   - A timeout of 0 selects the lifetime of the Forwarder's Config. It neither deletes the
//     mapping nor requests a permanent one.
//   - The TCP and UDP mappings of one port are independent of each other.
//   - PCP is supported too. If the gateway refuses one protocol, the next one is tried.
//   - An error contains the error of each protocol, and wraps errors of package backends.
//     Test for [ErrNoNATFound] with errors.Is.
//
// DeletePortMapping cannot delete a mapping that an earlier run of the program left on the
// gateway. If the Forwarder that is passed to [New] has a StateFile, it resumes or deletes such
// mappings.
//
// Like go-nat, the package makes IPv4 mappings only.
package nat
