// Package discover finds the gateway that the kernel uses, and the address of this host
// from which the kernel sends to it.
//
//	gw, err := discover.Default()      // to the IPv4 internet; errors.Is(err, discover.ErrNoRoute) offline
//	gw.Addr, gw.Local, gw.Interface    // next hop, our address on that route, "eth0"
//	discover.Watch(ctx, changed)       // calls changed after routes, addresses or links changed
//
// # Sources
//
// [Default], [Default6] and [Route] send one request to the kernel's own route lookup.
// The result therefore considers policy tables, VPN split routes, metrics and multipath
// in the same way as for real packets. These functions send no packets, run no programs,
// and, except under Wine, guess no addresses. [Gateways] lists every default route instead, so
// that a user can choose one.
//
//	Linux                          RTM_GETROUTE over rtnetlink; Watch by multicast groups
//	macOS, FreeBSD, OpenBSD, NetBSD  RTM_GET on a routing socket; Watch listens there
//	Windows                        GetBestRoute2; Watch by its notifications
//	Wine                           the routing table; Watch polls it
//
// On other systems, all four functions and Watch fail with an error that wraps
// [errors.ErrUnsupported].
//
// # Tests
//
// The Linux code is tested on real kernels, in network namespaces. The code for macOS, the
// BSDs and Windows is written from the headers and the documentation of those systems. The
// tests run its parsers on every system, with bytes laid out by hand from those headers.
// The calls that fetch these bytes are only compiled, and were never run on these systems.
//
// The code for Windows is tested under Wine 8, with a real router. Wine lacks GetBestRoute2,
// GetIpInterfaceEntry and notifications. There, the route is the one with the longest prefix
// and the lowest metric in the routing table, and the local address is a guess from the
// addresses of the interface. Wine lists only IPv4 routes.
//
// # Limits
//
// The request to the kernel contains no port, mark or protocol. Rules that route by those
// (ip rule … fwmark, ipproto, dport) are therefore ignored. Since Android 11, apps may
// not open rtnetlink sockets; the error then states this, and the user must name the
// gateway.
package discover
