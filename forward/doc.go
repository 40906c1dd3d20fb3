// Package forward makes a program behind a NAT reachable from the internet. It requests a
// port mapping from the gateway and keeps the mapping alive.
//
//	m, err := forward.Enable(forward.TCP(8080)) // gateway:8080 → here:8080, or another external port
//	defer forward.Disable()                     // delete the mapping again
//	fmt.Println(m.External())                   // the address to publish
//
// The package-level functions are for func main: they share one Forwarder, and Disable
// without arguments deletes the mapping that was enabled last. A library creates a
// [Forwarder] of its own with [New], and closes each [Mapping] that it enabled.
//
// # How it works
//
// The first call finds the gateway that the kernel uses to reach the internet. It then finds
// out whether the gateway supports NAT-PMP, PCP or UPnP, and remembers the result. NAT-PMP is
// used if the gateway replies to it in time, otherwise PCP, otherwise UPnP. That time is six
// round trips of the gateway: at least 10 ms, and at most a quarter of a second. If the
// program uses the gateway again, also with another Forwarder, the protocol that it supported
// is asked first. With Config.Choices, so does the next run of the program. If a protocol cannot express a request, or if the gateway refuses it, the same call
// tries the next protocol.
//
// A mapping is renewed at half of the lifetime that the gateway granted. It is requested
// again if the gateway announces a restart, or if the gateway's clock or its table shows that
// it restarted or lost the mapping. To find out, each gateway is checked every 30 seconds
// (Config.CheckEvery). If the route to the internet or the address of this host changes, the mapping
// is requested on the new route. It is deleted on the old route if that gateway can still be
// reached.
//
// The external port can change at any renewal. Read it from [Mapping.External], wait for the
// next change with [Mapping.Changed], or set Config.OnEvent.
//
// [Listen] and [ListenPacket] open sockets to which the gateway forwards until they are closed.
// With Config.StateFile, the next run of a program resumes the mappings that remained after a
// crash.
//
// [Mappings] lists the mappings of all hosts on the gateway, if the gateway supports UPnP.
// [DisableAll] with [Foreign] deletes those of them that the gateway allows this host to delete.
//
// This host's own firewall must admit the connections too: a mapping on the gateway does not
// change it. Mapping.Verify measures whether connections arrive, and with Config.Verify that is
// repeated in the background. A proof of access from the internet needs a prober that uses another
// uplink or a host of the internet, such as reach.Reflector: see package reach and
// docs/reachability.md.
//
// # Several programs
//
// NAT-PMP and UPnP cannot distinguish two programs of one host. PCP cannot if they have the
// same NonceKey. Therefore the programs of one user that hold the same mapping are counted, and
// the last one that ends deletes the mapping. Until then, Close and Disable succeed without a
// deletion.
//
// The programs are counted by locks of the files $XDG_RUNTIME_DIR/goforward/holders.lock and
// /tmp/goforward-UID/holders.lock; one of them is enough. The kernel releases the locks of a
// program that crashes. Programs do not notice each other if they have different users or
// network namespaces, or no directory in common, as in containers, and never on Plan 9 and
// WebAssembly. Then the first one that ends deletes the mapping, and the other one creates it
// again at its next renewal. Mappings of Config.Backends are not counted.
//
// # Errors
//
// Errors of gateways wrap the errors of package backends, such as ErrConflict,
// ErrNotAuthorized and ErrNoReply. Test for them with errors.Is. An [*Error] lists the attempts
// and the error of each, and gives advice on what to do. [ErrNoGateway] means that this host
// has no route to the internet, or that no gateway on the route replied. [ErrNoMapping] means
// that there is no mapping to disable or refresh. [ErrClosed] means that the Forwarder or
// Mapping was closed. context.DeadlineExceeded is returned only if the caller's own context
// ended the call.
//
// # More
//
// The directory examples of the repository has short programs for these uses: oneliner,
// options, httpserver, udpecho, follow and tidy. The directory adapters has drop-in
// replacements for go-ethereum, go-libp2p, go-nat and go-nat-pmp. The page docs/routers.md
// describes what to do on a router that refuses requests. Package gatewaytest is a router for
// the tests of a program that forwards ports.
//
// # Exit
//
// If a program ends without Disable, Close or Shutdown, its mappings remain on the gateway
// until their lifetime ends.
package forward
