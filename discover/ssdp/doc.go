// Package ssdp finds UPnP devices: it searches for them and hears what they
// announce (UPnP Device Architecture 1.1, section 1).
//
//	for response, err := range (ssdp.Search{Interface: "eth0"}).Responses(ctx) {
//		if err != nil {
//			return err // not a single search could be sent
//		}
//		if looksGood(response.Location) {
//			break // the sockets are closed, nothing is left behind
//		}
//	}
//
// [Search] yields each answer the moment it comes. [Listener] tells of devices
// that come, go and change. [ParseResponse] and [ParseNotification] read the datagrams.
//
// # Trust
//
// Anyone on the network can send either, under any address: take them as hints.
// What is promised is their shape: at most 8 KiB and 64 header lines, no control
// characters, and of one search no more than 64 distinct answers from one
// address and 256 from all those that were not asked by their own address.
// Location in particular is unchecked: it may name another host, this host, or
// no host at all.
//
// # Leniency
//
// Devices are read as they are: header names in any case, with or without a
// space after the colon, lines that end in LF alone, HTTP/1.0, no reason phrase,
// no blank line at the end, answers from any port. Of a header that comes twice
// the first counts.
//
// # Interfaces
//
// A named interface is bound to where the system has an option for it (Linux,
// macOS; Windows for sending). On the BSDs multicast leaves by it, while the
// route decides for unicast, and answers may come in elsewhere. Linux before 5.7
// lets only root bind.
package ssdp
