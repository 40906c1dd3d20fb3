// Package ssdp finds UPnP devices: it searches for them and receives their
// notifications (UPnP Device Architecture 1.1, section 1).
//
//	for response, err := range (ssdp.Search{Interface: "eth0"}).Responses(ctx) {
//		if err != nil {
//			return err // no search could be sent
//		}
//		if looksGood(response.Location) {
//			break // closes the sockets
//		}
//	}
//
// [Search] yields each response as soon as it arrives. [Listener] receives the
// notifications of devices that appear, leave or change. [ParseResponse] and
// [ParseNotification] parse the datagrams.
//
// # Trust
//
// Every host on the network can send responses and notifications, from any source
// address: treat them as hints. The package guarantees only their form. A message has
// at most 8 KiB and 64 header lines, and no control characters. A search yields at
// most 64 distinct responses from one address, and at most 256 in total from addresses
// that are not unicast destinations of the search. The package does not check Location:
// it may name another host, this host, or no host at all.
//
// # Leniency
//
// The parsers accept what real devices send: header names in any case, no space after
// the colon, lines that end in LF alone, HTTP/1.0, no reason phrase, and no blank line
// at the end. Responses may arrive from any port. If a header is repeated, the first
// one counts.
//
// # Interfaces
//
// If an interface is named, the socket is bound to it on systems that have an option
// for that (Linux, macOS, and Windows for sending). On the BSDs, the interface applies
// to outgoing multicast only: the route decides for unicast, and responses may arrive
// on another interface. On Linux before 5.7, only root can bind to an interface.
package ssdp
