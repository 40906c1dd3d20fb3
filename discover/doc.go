// Package discover tells which gateway the kernel really uses, and from which
// of the host's addresses.
//
//	gw, err := discover.Default()      // to the IPv4 internet; errors.Is(err, discover.ErrNoRoute) offline
//	gw.Addr, gw.Local, gw.Interface    // next hop, our address on that way, "eth0"
//	discover.Watch(ctx, changed)       // calls changed after routes, addresses or links did
//
// # What is asked
//
// [Default], [Default6] and [Route] put one question to the kernel's own route
// lookup, so that policy tables, VPN split routes, metrics and multipath count
// as they count for real packets. Nothing is sent, no program is run, and no
// address is guessed. [Gateways] lists every default route instead, for a user
// to choose from.
//
//	Linux                          RTM_GETROUTE over rtnetlink; Watch by multicast groups
//	macOS, FreeBSD, OpenBSD, NetBSD  RTM_GET on a routing socket; Watch listens there
//	Windows                        GetBestRoute2; Watch by its notifications
//
// Elsewhere all four, and Watch, fail with an error that wraps [errors.ErrUnsupported].
//
// # What has been run
//
// The Linux side is tested against real kernels, in network namespaces. The
// macOS, BSD and Windows sides are written from the systems' headers and
// documentation: their parsers are tested on every system, on bytes laid out by
// hand from those headers, but the calls that fetch the bytes are only compiled
// and were never run.
//
// # Limits
//
// The question names no port, mark or protocol: rules that route by those
// (ip rule … fwmark, ipproto, dport) are not seen. Android apps may not open
// rtnetlink sockets since Android 11; there the error says so and the gateway
// has to be named by the user.
package discover
