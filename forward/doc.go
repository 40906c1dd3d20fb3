// Package forward makes a program behind a NAT reachable from the internet, by
// asking the gateway to forward a port, and keeps it so.
//
//	m, err := forward.Enable(forward.TCP(8080)) // gateway:8080 → here:8080, or another external port
//	defer forward.Disable()                     // taken away again
//	fmt.Println(m.External())                   // what to tell the world
//
// The one-liners of the package are for func main: they share one Forwarder,
// and Disable without arguments takes away whatever was enabled last. A library
// holds a [Forwarder] of its own, from [New], and closes the [Mapping] that it
// was given.
//
// # What it does
//
// The first call finds the gateway that the kernel uses for the internet, asks
// whether it speaks NAT-PMP, PCP or UPnP, and remembers the answer: NAT-PMP is
// taken where it answers within a quarter of a second, else PCP, else UPnP. What
// one cannot express, or the gateway refuses to it, goes to the next within the
// same call. A mapping is renewed at half of the lifetime that the gateway
// granted, and asked for again when the gateway announces that it restarted, or
// its clock or table shows it. When the route to the internet or this host's
// address changes, it is asked for on the new way, and taken away on the old one
// if that can still be reached. The external port can change at any renewal: read
// it from [Mapping.External], wait for the next change with [Mapping.Changed], or
// set Config.OnEvent.
//
// [Listen] and [ListenPacket] are sockets that are forwarded to while they are
// open. Config.StateFile lets the next run of a program take over what a crash
// left behind.
//
// [Mappings] lists what the gateway forwards, for whomever, where it speaks UPnP,
// and [DisableAll] with [Foreign] deletes of that what the gateway lets it.
//
// A mapping on the gateway is half of the way: this host's own firewall must
// let the connections in as well.
//
// # Errors
//
// What gateways answer wraps the errors of package backends: ErrConflict,
// ErrNotAuthorized, ErrNoReply and so on, for errors.Is. An [*Error] tells what
// was tried, what each said, and what to do. [ErrNoGateway] means that there is
// no way out of this host or that nothing answered on it, [ErrNoMapping] that
// there is nothing to disable or refresh, [ErrClosed] that the Forwarder or
// Mapping was closed. context.DeadlineExceeded appears only when the caller's
// own context ended a call.
//
// # More
//
// The directory examples of the repository has a short program for each of this:
// oneliner, options, httpserver, udpecho, follow and tidy; adapters are drop-ins
// for go-ethereum, go-libp2p, go-nat and go-nat-pmp; and docs/routers.md says
// what to do on a router that refuses. Package gatewaytest is a router for the
// tests of a program that forwards ports.
//
// # Exit
//
// A program that ends without Disable, Close or Shutdown leaves its mappings
// on the gateway until their lifetime has passed.
package forward
