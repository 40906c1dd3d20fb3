// Package nat has the API of go-nat (github.com/libp2p/go-nat and its fork by
// netbird), kept by a [forward.Forwarder]. For a program that uses go-nat,
// changing the import path is the whole migration:
//
//	import nat "github.com/natforward/goforward/adapters/gonat"
//
//	gw, err := nat.DiscoverGateway(ctx)
//	port, err := gw.AddPortMapping(ctx, "tcp", 8080, "my program", time.Hour) // the true external port
//	defer gw.DeletePortMapping(ctx, "tcp", 8080)
//
// A program that has a Forwarder gives it to [New]. New programs need none of
// this: use package forward.
//
// # What is different
//
//   - The port that AddPortMapping returns is the one that the gateway granted.
//   - A mapping is kept alive until it is deleted, not only as long as somebody
//     asks for it again: renewed at half of its lifetime, and asked for again when
//     the gateway restarts or another takes its place. To ask again is welcome and
//     cheap: nothing is sent while the mapping stands.
//   - DeletePortMapping deletes on the gateway, whichever protocol it speaks.
//   - A timeout of 0 is the Forwarder's own lifetime; it deletes nothing, and is
//     no mapping without an end.
//   - TCP and UDP mappings of one port are two, and do not touch each other.
//   - PCP is spoken too. A gateway that refuses one protocol is asked by the next.
//   - Errors say what each protocol answered, and wrap those of package backends.
//     Test for [ErrNoNATFound] with errors.Is.
//
// A mapping that an earlier run of the program left behind is unknown to
// DeletePortMapping: give [New] a Forwarder with a StateFile, which takes such
// mappings over or away.
//
// It maps IPv4 alone, as go-nat does.
package nat
